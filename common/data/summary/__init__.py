"""What the data of an experiment hold, and what is unusual in them."""
