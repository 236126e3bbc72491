"""Metrics of predictions, and their comparison."""
