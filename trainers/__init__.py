"""What a user types after -tr: one file per trainer."""
