"""allocate-bits: the cheapest choice of options inside the budget."""

from .allocate_bits import AllocateBits

__all__ = ["AllocateBits"]
