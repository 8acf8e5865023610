"""Experiment: one network for all organelles, on labels that those of single ones completed."""
