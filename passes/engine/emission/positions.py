"""Positions of rows, channels or entries, stored in few bytes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from .cost import POSITIONS_IN_UINT16
from .emitter import Emitter


def emit_positions(
    name: str, places: np.ndarray, count: int, dtype: ir.DataType, emit: Emitter
) -> ir.Value:
    """Stores places below ``count`` in few bytes; returns them as ``dtype``."""
    small = count <= POSITIONS_IN_UINT16
    stored = emit.constant(name, places.astype(np.uint16 if small else np.int32))
    return emit.node(
        "permutation", f"{name}/wide", "Cast", [stored], {"to": int(dtype)}, dtype=dtype
    )
