"""Settings of an experiment: what there is, read from its Python files, checked."""
