"""Predictions to masks and objects, by the functions of process_config.py."""
