"""Nodes for stored weights: products, lookups, expansions, and what they cost."""
