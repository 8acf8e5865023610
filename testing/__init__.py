"""The phantom cell, for tests, benchmarks and the demo; the engine does not need it."""
