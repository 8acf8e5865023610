"""Volumes of the challenge's public bucket, on this disk."""
