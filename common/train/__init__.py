"""One training run: loss, optimiser, steps, checkpoints, logs; searches and repeats of it."""
