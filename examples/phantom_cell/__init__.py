"""Experiment: the demo, a U-Net on the phantom cell, minutes on a CPU."""
