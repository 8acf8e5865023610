"""Experiment: membranes and cells of real FIB-SEM, minutes on a CPU."""
