"""What every trainer of ours shares: the training block of the plans, safe checkpoints, deep supervision."""
