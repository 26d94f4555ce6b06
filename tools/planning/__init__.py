"""What a compilation would take and give, before it is run."""
