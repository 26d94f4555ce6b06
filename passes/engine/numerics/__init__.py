"""Pure functions on arrays: rounding, allocation, codebooks, packing, divergence."""
