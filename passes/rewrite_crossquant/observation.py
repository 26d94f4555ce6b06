"""Look at activations: run a few samples and hand out some tokens of what products multiply.

Only so many activations are looked at in one run as fit into memory; for the next ones the
samples run again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir
import torch

from ...ir import Feeds, UsageError
from ..engine.execution import exposing
from ..engine.execution.samples import Samples
from ..engine.pipeline.base import PassContext

MOST_TOKENS = 512  # that are kept of an activation, over all samples
BYTES_AT_ONCE = 1 << 28  # of tokens that are kept at a time


Widths = dict[ir.Value, int]  # activations, each with its number of columns


def observe(
    model: ir.Model, wanted: Sequence[Widths], samples: int, context: PassContext
) -> Iterator[dict[ir.Value, torch.Tensor]]:
    """Yields tokens x columns of activations, a few of them at a time.

    Args:
        model: The graph; what is yielded holds for it as it is when the run begins.
        wanted: Activations that have to be yielded together.
        samples: Number of calibration samples to use.
        context: Supplies them, and runs them.

    Raises:
        UsageError: There are no samples.
    """
    if context.calibration is None:
        raise UsageError(
            "rewrite-crossquant needs samples to observe activations",
            hint="give --calibration FILE",
        )
    feeds = list(context.calibration.first(max(samples, 1)))
    for part in _parts(wanted):
        yield _tokens_of(model, part, feeds, context)


def _parts(wanted: Sequence[Widths]) -> Iterator[list[ir.Value]]:
    """Yields activations whose tokens can be kept together."""
    part: list[ir.Value] = []
    used = 0
    for widths in wanted:
        size = sum(widths.values()) * MOST_TOKENS * 4
        if part and used + size > BYTES_AT_ONCE:
            yield part
            part, used = [], 0
        part += widths
        used += size
    if part:
        yield part


def _tokens_of(
    model: ir.Model, values: list[ir.Value], feeds: Sequence[Feeds], context: PassContext
) -> dict[ir.Value, torch.Tensor]:
    seen: dict[ir.Value, list[torch.Tensor]] = {value: [] for value in values}
    samples = Samples.of(context, feeds)
    for value, tokens in exposing.observe(
        model, values, samples, context, "looking at activations"
    ):
        seen[value].append(_some(tokens, MOST_TOKENS // len(feeds)))
    return {value: torch.cat(parts) for value, parts in seen.items()}


def _some(tokens: np.ndarray, count: int) -> torch.Tensor:
    """Returns at most ``count`` tokens, evenly spread."""
    step = -(-len(tokens) // max(count, 1)) or 1
    return torch.from_numpy(tokens[::step].astype(np.float32))
