"""A job, checked: what a configuration names, built and looked at before any work."""
