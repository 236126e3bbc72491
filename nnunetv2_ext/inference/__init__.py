"""Prediction: many models at once, inside a region of interest, exported in slabs."""
