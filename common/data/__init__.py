"""What is known about a voxel, and where it comes from."""
