"""How finely float32 products are computed. No other file tells torch.

Products are exact to float32 wherever their results are kept: statistics, rounding, losses.
They may be coarser in the steps of ``tune-scales``, whose gradients are noisier than that:
TF32 on CUDA devices, bfloat16 on processors that multiply it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def exact_products() -> Iterator[None]:
    """Computes products in float32, whatever the caller has told torch."""
    with _products("highest", coarse_convolutions=False):
        yield


@contextmanager
def coarse_products() -> Iterator[None]:
    """Lets products round their factors where that is quick."""
    with _products("medium", coarse_convolutions=True):
        yield


@contextmanager
def _products(precision: str, *, coarse_convolutions: bool) -> Iterator[None]:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.allow_tf32 = coarse_convolutions
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
