"""What was scored: records and the names of their rows."""
