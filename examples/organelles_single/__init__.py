"""Experiment: one network for each organelle of the phantom cell, with the others against it."""
