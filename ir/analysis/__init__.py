"""Read-only questions about a graph: blocks, shared orders, attention, storage."""
