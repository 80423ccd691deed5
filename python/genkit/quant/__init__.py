"""Weights in fewer bits: formats.py says which forms there are."""
