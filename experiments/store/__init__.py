"""What is kept: artifacts, checkpoints, and where they came from."""
