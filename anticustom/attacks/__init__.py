"""Attacks: they turn a person's photos into protected ones. Each perturbation loop has a file."""
