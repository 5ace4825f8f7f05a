"""One job, from settings to its row."""
