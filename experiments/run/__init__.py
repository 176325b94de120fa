"""One run: protect, customize, evaluate."""
