"""What scores are computed on, and with."""
