"""What tests, benchmarks and the demo need and the engine does not."""
