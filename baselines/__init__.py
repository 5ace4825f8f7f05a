"""BK-SDM, Diff-Pruning, magnitude, random layers and the dense teacher itself on the same contract."""
