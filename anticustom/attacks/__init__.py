"""Attacks: what turns a person's photos into protected ones. One file per perturbation loop."""
