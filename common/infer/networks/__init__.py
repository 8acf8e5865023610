"""Trained networks: their weights, the window that fits, several as one."""
