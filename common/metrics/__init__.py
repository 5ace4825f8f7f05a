"""Distances, similarities and published scores of samples."""
