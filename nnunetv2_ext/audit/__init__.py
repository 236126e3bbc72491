"""The audit of a data set's labels: which are probably wrong, and which follow another style."""
