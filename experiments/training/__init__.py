"""The training stage of a job."""
