"""BK-SDM, Diff-Pruning, magnitude and random pruning on the same contract; not built yet."""
