"""Volumes in the formats of other programs.

`outgoing` is what is written; each other module knows how one kind of file says what it holds.
"""
