"""Attention in a graph: which units make its queries, keys, values and output, and why not."""

from .binding import Attention, Operand, Projection, Unmatched
from .search import Found, find_attention

__all__ = ["Attention", "Found", "Operand", "Projection", "Unmatched", "find_attention"]
