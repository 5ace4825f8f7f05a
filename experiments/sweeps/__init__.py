"""Many jobs as one: records, W&B runs, objectives."""
