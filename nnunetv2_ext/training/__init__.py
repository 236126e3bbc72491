"""What every trainer of ours shares: the schedule from plans, safe checkpoints, deep supervision."""
