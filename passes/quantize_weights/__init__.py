"""quantize-weights: rounds every unit to the options that it was given."""

from .quantize_weights import QuantizeWeights

__all__ = ["QuantizeWeights"]
