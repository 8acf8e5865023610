"""Volumes: where their voxels are, what their values mean, and how they are read and written."""
