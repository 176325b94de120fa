"""Runs experiments: stages, their stored artifacts, records, tables and pictures."""
