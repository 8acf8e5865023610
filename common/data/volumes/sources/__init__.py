"""Volumes that are no OME-NGFF 0.4 groups on this disk.

Read `opening` first: its table says which module opens what. `place` is how a user names a volume,
`remote` what is on servers; each other module knows the metadata of one kind of file.
"""
