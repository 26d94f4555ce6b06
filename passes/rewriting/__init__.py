"""Rewrites that several passes share, or that are too long to stand in one."""
