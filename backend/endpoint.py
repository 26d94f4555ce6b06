"""The feeds and results of a loaded model."""

from __future__ import annotations

from dataclasses import dataclass


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
