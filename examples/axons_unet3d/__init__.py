"""Experiment: axons and their borders by a plain 3-D U-Net with batch norm and dropout."""
