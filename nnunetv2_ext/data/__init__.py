"""Data: volumes in files, slab geometry, thick and thin-thick data sets, the synthetic phantom."""
