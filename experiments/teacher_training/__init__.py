"""Small teachers, trained on real data."""
