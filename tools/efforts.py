"""How much a compilation may take: defaults for the options that decide that."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

DEFAULT_EFFORT = "default"
_EFFORTS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "fast": {"preset": "fast", "samples": 24},
        DEFAULT_EFFORT: {},
        "high": {"samples": 512},
    }
)
EFFORTS = tuple(_EFFORTS)


def effort_defaults(effort: str, *, with_preset: bool) -> dict[str, Any]:
    """Returns values of options that are to hold where nobody says otherwise.

    Args:
        effort: One of ``EFFORTS``.
        with_preset: Whether the pipeline is open still.
    """
    found = dict(_EFFORTS.get(effort, {}))
    if not with_preset:
        found.pop("preset", None)
    return found
