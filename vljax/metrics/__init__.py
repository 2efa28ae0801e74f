"""Measures of generated pictures and texts; feature networks are arguments."""
