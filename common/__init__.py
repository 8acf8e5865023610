"""How any experiment is run; an experiment folder says what is run."""
