"""Tensors over arrays that may not be written to, such as maps of files."""

from __future__ import annotations

import warnings

import numpy as np
import torch


def borrowed(array: np.ndarray) -> torch.Tensor:
    """Returns a tensor over the memory of ``array``, which nobody may write into."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)
