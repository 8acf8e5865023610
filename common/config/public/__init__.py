"""Configurations of the public toolbox, taken as settings of ours."""
