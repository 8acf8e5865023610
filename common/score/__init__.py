"""The challenge's score and other figures, tables of them, tuning, submissions."""
