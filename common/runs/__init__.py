"""What was run before: found, read, compared, reported, united in one TensorBoard."""
