"""What a user types after -pl: one file per planner."""
