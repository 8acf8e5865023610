"""Experiment: a small 3D U-Net on all tested classes at 32 nm."""
