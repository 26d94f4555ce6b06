"""Compiling to at most the size of another file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ....ir import InfeasibleBudget
from ...api import CompileResult
from ...budget import MOST_BITS
from ...inspection import model_bytes

_FIRST_BITS = 8.0
_ATTEMPTS = 4
_CLOSE = 0.98  # of the size: what more bits would add is not worth another attempt


def at_most(compiled: Callable[[float, Path], CompileResult], size: int, output: Path) -> Path:
    """Returns the largest result found that has at most ``size`` bytes.

    A budget bounds weights, and a file holds more; how much, each attempt tells the next.

    Args:
        compiled: Compiles to a budget in bits per weight, beside a path.
        size: Bytes of the model and its data.
        output: Where to; attempts are beside it.

    Raises:
        InfeasibleBudget: Nothing so small was found.
    """
    bits, best, most = _FIRST_BITS, None, 0
    for attempt in range(_ATTEMPTS):
        try:
            made = compiled(bits, output.with_name(f"{output.stem}-{attempt}.onnx"))
        except InfeasibleBudget as error:
            if error.smallest is None or error.smallest >= bits:
                raise
            bits = error.smallest
            continue
        got = model_bytes(made.model)
        if most < got <= size:
            best, most = made.model, got
        elif got == most:  # all has been given what there is
            break
        if _CLOSE * size <= got <= size or (got <= size and bits >= MOST_BITS):
            break
        bits = min(max(made.got + 0.99 * (size - got) * 8 / made.weights, 0.1), MOST_BITS)
    if best is None:
        raise InfeasibleBudget(f"nothing of {size} bytes was found")
    return best
