"""What every planner of ours shares: the memory estimate, the patch search, the training block."""
