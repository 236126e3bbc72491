"""Data: thick slices by average intensity projection, the synthetic phantom."""
