"""The scripts that built the data sets."""
