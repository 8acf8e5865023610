"""Search for good settings: `space` what a search_space.py declares, `trials` that are trained.

A search_space.py imports from here what it is written with.
"""

from common.train.search.space import choice, integers, log_uniform, uniform

__all__ = ["choice", "integers", "log_uniform", "uniform"]
