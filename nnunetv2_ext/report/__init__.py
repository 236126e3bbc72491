"""Pictures, charts, and one HTML file with all of an evaluation."""
