"""Objects of volumes larger than memory: pieces, basins, fragments, joined over blocks."""
