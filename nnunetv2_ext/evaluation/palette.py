"""The colours of pictures, charts and pages."""

COLOURS = ("#e69f00", "#56b4e9", "#e0409f", "#00c08a", "#f0e442", "#d55e00", "#0072b2")
"""Colours that colour-blind readers can tell apart (after Okabe and Ito), one per label or model."""
