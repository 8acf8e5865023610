"""Networks, and what one takes, gives and needs."""
