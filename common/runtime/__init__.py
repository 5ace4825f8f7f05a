"""What every program needs: files, locks, processes, progress, seeds."""
