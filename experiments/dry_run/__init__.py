"""What a job would take, without weights."""
