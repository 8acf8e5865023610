"""Find, read, compare and report earlier runs, and unite them in one TensorBoard."""
