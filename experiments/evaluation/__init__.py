"""The measuring stage of a job."""
