"""Translation validation: holds every pass to what it promises about the function."""
