"""Experiment: organelles in real, strongly anisotropic ssTEM."""
