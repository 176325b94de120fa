"""Scoring: image folders in, rows of numbers out."""
