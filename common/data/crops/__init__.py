"""Crops as they train: raw, and labels as palette images, decoded once into a cache."""
