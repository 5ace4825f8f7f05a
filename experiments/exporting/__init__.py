"""A finished student in other formats and places."""
