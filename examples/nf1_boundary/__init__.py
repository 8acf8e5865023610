"""Experiment: objects and their boundaries by a 2-D network that sees neighbouring sections."""
