"""Baselines of the CellMap Segmentation Challenge: a folder is an experiment, common the engine."""
