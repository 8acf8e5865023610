"""Experiment: cells of neuropil come apart by affinities."""
