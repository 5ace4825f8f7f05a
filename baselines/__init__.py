"""BK-SDM, magnitude and random layers on the same contract; Diff-Pruning is not built yet."""
