"""Experiment: a residual-encoder U-Net on all tested classes at 8 nm."""
