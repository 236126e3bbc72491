"""The audit of a data set's labels: which are probably wrong, and which follow another style."""

FEWEST = 10
"""Cases that an audit needs: of fewer, none can be told to be unlike the others."""
