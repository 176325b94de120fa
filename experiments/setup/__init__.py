"""A job: all that a configuration names, built and checked before any work."""
