"""Lower ONNX graphs to ``torch.fx`` modules that compute the same, with autograd.

One table (``table.py``) maps (domain, op type, opset version) to a small function over
tensors; ``lower.py`` strings those functions together, so that the printed code of a lowered
module reads like the ONNX graph.
"""

from __future__ import annotations

from .lower import lower_model, lower_segment, unsupported, weight_attribute

__all__ = ["lower_model", "lower_segment", "unsupported", "weight_attribute"]
