"""Samples and batches: drawn, cut, turned and changed, on the training device."""
