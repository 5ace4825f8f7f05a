"""Parameters, MACs, time and memory of networks."""
