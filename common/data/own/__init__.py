"""Volumes of your own: imported into the layout of the challenge, described, and cut in two."""
