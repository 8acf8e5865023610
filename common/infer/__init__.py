"""A network, and functions made of its output, over volumes larger than memory."""
