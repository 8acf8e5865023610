"""Which crops there are, and which of them train, validate and test."""
