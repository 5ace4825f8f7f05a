"""LAPTOP-Diff (arXiv 2404.11098): layers chosen by output loss and a knapsack; not built yet."""
