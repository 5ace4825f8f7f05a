"""L1-Diff: unstructured pruning by magnitude and gradient under L1 regularisation; not built yet."""
