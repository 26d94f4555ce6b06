"""The feeds and results of a loaded model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ..ir import Feeds


@dataclass(frozen=True)
class Endpoint:
    """An input or output of a loaded model.

    Attributes:
        name: Its name.
        type: Its type as ONNX Runtime writes it, such as ``tensor(float)``.
        shape: Dimensions; a text or None where the size is free.
    """

    name: str
    type: str
    shape: tuple[int | str | None, ...]


_FLOATS = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
}


def fitting(feeds: Feeds, inputs: Iterable[Endpoint]) -> dict[str, np.ndarray]:
    """Returns feeds with floats of the width that a model reads.

    A result may keep its caches in float16, and is fed what its original is.
    """
    wanted = {one.name: _FLOATS.get(one.type) for one in inputs}
    found = {}
    for name, value in feeds.items():
        array, dtype = np.asarray(value), wanted.get(name)
        is_float = array.dtype in map(np.dtype, _FLOATS.values())
        found[name] = array.astype(dtype) if dtype is not None and is_float else array
    return found
