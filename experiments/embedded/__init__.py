"""The tiny world: how its models are trained and checked."""
