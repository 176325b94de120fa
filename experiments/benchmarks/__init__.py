"""How fast: the time and memory of every phase."""
