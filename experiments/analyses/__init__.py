"""What it looks like: figures of timesteps, features, losses, cost."""
