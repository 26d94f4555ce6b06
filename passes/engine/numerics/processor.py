"""Which of two forms a computation takes: for a processor's cache, or for an accelerator."""

from __future__ import annotations

import torch

_PROCESSOR = "cpu"  # torch's name; everything else is an accelerator


def on_processor(tensor: torch.Tensor) -> bool:
    """Tells whether a tensor is in the memory of the processor."""
    return tensor.device.type == _PROCESSOR
