"""What choosing column scales takes."""

from __future__ import annotations

import onnx_ir as ir

from ...ir import Option, quantizable
from ..engine.execution.extent import FLOAT_BYTES, Extent
from ..engine.numerics.gptq import LOSSLESS_BITS
from ..engine.pipeline.base import PassContext
from ..engine.pipeline.work import Kind, Work
from ..engine.statistics.rounding_work import factor_work, most_at_once, option_work
from .observation import BYTES_AT_ONCE, MOST_TOKENS
from .search import ALPHAS, BETAS, SAMPLED_ROWS
from .sites import find_sites

_WALKS = 12  # over tokens, while their rounding is tried


def fold_work(
    model: ir.Model, context: PassContext, samples: int, bits: int, *, searched: bool
) -> Work:
    """Returns the work of ``fold``.

    Args:
        model: The graph.
        context: Its samples and the target.
        samples: How many of them are looked at.
        bits: Width that weights are rounded to in the search.
        searched: Whether scales are searched for.
    """
    if context.calibration is None:
        return Work()
    extent, units = Extent.of(model, context.calibration), quantizable(model)
    sites, _ = find_sites(model, cache=False)
    read = {part.unit.name for site in sites for part in site.consumers if part.unit}
    tokens = min(MOST_TOKENS, extent.positions * samples)
    seen = sum(FLOAT_BYTES * tokens * len(c) for s in sites for _, c in s.activations)
    runs = samples * (1 + seen // BYTES_AT_ONCE)
    count = len(ALPHAS) + len(BETAS) + 2 if searched else 1
    total = Work({Kind.RUN: runs * extent.multiply_adds(units)}, held=min(seen, BYTES_AT_ONCE))
    for unit in (one for one in units if one.name in read):
        columns = unit.shape[1]
        rows = min(SAMPLED_ROWS, unit.shape[0])
        width = min(bits, LOSSLESS_BITS)
        tried = option_work(
            (rows, columns), Option(width, columns), in_floats=False, batches=0
        ).amounts.get(Kind.TRIAL, 0.0)
        once = {
            Kind.TRIAL: tried,
            Kind.WALK: float(_WALKS * tokens * columns),
            Kind.PRODUCT: float(tokens * columns * rows),
        }
        total += factor_work(columns) + Work(once).times(count)
    held = min(seen, BYTES_AT_ONCE) + most_at_once(24 * unit.shape[1] ** 2 for unit in units)
    return Work(total.amounts, held=held)
