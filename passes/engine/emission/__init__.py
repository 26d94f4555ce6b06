"""Nodes for stored weights: products, lookups, expansions, and their cost."""
