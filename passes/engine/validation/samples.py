"""What two graphs are run on to compare them: a few tokens of real samples."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import onnx_ir as ir

from ....ir import Calibration, Feeds
from .lockstep import CannotRun

MOST_TOKENS = 24  # of a sample: a wrong weight shows at the first, positions need a few
_SAMPLES = 1
_LARGEST = 1 << 26  # entries of an input that is made up
_SYNTHETIC = 8  # size of a dimension that the graph leaves open


def chosen_feeds(model: ir.Model, calibration: Calibration | None, seed: int) -> list[Feeds]:
    """Returns inputs for ``model``: shortened samples, or noise where there are none."""
    if calibration is None or not calibration.training:
        return [_synthetic(model, np.random.default_rng(seed))]
    return [_shortened(model, feeds) for feeds in calibration.training[:_SAMPLES]]


def _shortened(model: ir.Model, feeds: Feeds) -> Feeds:
    """Cuts the axis that counts tokens, wherever an input has it, to ``MOST_TOKENS``.

    It is the open second axis of integer matrices (ids, masks, positions). Other axes of its
    length that the graph leaves open are cut alike; without such inputs nothing is.
    """
    opened = {
        str(value.name): _open_axes(value)
        for value in model.graph.inputs
        if value.name in feeds
    }
    lengths = {
        feeds[name].shape[1]
        for name, axes in opened.items()
        if feeds[name].ndim == 2 and feeds[name].dtype.kind == "i" and 1 in axes
    }
    if len(lengths) != 1 or (length := lengths.pop()) <= MOST_TOKENS:
        return feeds
    return {
        name: array[
            tuple(
                slice(MOST_TOKENS)
                if size == length and at in opened.get(name, ())
                else slice(None)
                for at, size in enumerate(array.shape)
            )
        ]
        for name, array in feeds.items()
    }


def _open_axes(value: ir.Value) -> Sequence[int]:
    if value.shape is None:
        return ()
    return [at for at, dim in enumerate(value.shape) if not isinstance(dim, int)]


def _synthetic(model: ir.Model, rng: np.random.Generator) -> Feeds:
    """Returns noise for floats, and ones for integers, which are ids and masks at once."""
    found: dict[str, np.ndarray] = {}
    for value in model.graph.inputs:
        if value.is_initializer() or value.shape is None or value.dtype is None:
            continue
        dims = [dim if isinstance(dim, int) else _SYNTHETIC for dim in value.shape]
        if prod(dims) > _LARGEST:
            raise CannotRun(f"input {value.name!r} is too large for made-up samples")
        if dims and not isinstance(value.shape[0], int):
            dims[0] = 1
        dtype = value.dtype.numpy()
        floats = value.dtype.is_floating_point()
        found[str(value.name)] = (
            rng.standard_normal(dims) if floats else np.ones(dims)
        ).astype(dtype)
    return found
