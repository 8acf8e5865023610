"""A network over a volume, block by block."""
