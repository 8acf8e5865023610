"""Several processes: who they are, how they share out the work, and how far it is."""
