"""Several runs of an experiment, one after the other: `seeds`, and `each_class` by itself."""
