"""Lightning modules and the loop that runs them, resumable."""
