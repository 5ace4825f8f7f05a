"""BK-SDM, Diff-Pruning, magnitude and random layers on the same contract."""
