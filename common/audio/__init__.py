"""Sound as spectrograms, and back."""
