"""Speed, memory and accuracy, each a command that prints a table."""
