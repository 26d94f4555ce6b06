"""Measured divergence of one unit at a time: the truth that ``fisher`` predicts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import torch

from ...ir import Calibrated, Feeds, Option, Unit, UsageError, need_note
from ...ir.blocks import Block, blocks_of
from ..machinery.base import PassContext
from ..numerics.divergence import kl_divergence
from ..numerics.rounding import round_rows
from . import fisher
from .metric import Asked, Judgement
from .quadratic import Quadratic


class _Chain:
    """The blocks of a model as modules; values at the boundaries of one sample."""

    def __init__(self, model: ir.Model, context: PassContext) -> None:
        self.blocks = blocks_of(model)
        self.context = context
        self.modules = [self._lower(block) for block in self.blocks]
        self.place = {node: at for at, block in enumerate(self.blocks) for node in block.nodes}

    def _lower(self, block: Block) -> torch.nn.Module:
        return self.context.runner.segment(block.nodes, block.inputs, block.outputs)

    def run(
        self, values: dict[str, torch.Tensor], first: int, other: dict[int, torch.nn.Module]
    ) -> None:
        """Runs the blocks from ``first`` on, some as in ``other``; updates ``values``."""
        for at in range(first, len(self.blocks)):
            block, module = self.blocks[at], other.get(at, self.modules[at])
            with torch.no_grad():
                found = module(*(values[str(value.name)] for value in block.inputs))
            values.update(
                zip((str(value.name) for value in block.outputs), found, strict=True)
            )

    def swapped(self, unit: Unit, stored: np.ndarray) -> dict[int, torch.nn.Module]:
        """Returns the blocks that read ``unit``, lowered with other values for it."""
        kept = unit.weight.const_value
        unit.replace(stored)
        try:
            places = {self.place[use.node] for use in unit.uses}
            return {at: self._lower(self.blocks[at]) for at in places}
        finally:
            unit.weight.const_value = kept


def _divergence(note: Calibrated, exact: torch.Tensor, other: torch.Tensor) -> float:
    """Returns nats per place for logits, half the relative squared error otherwise."""
    p, q = (x.reshape(-1, x.shape[-1]).numpy() for x in (exact, other))
    if note.objective == "logits":
        return float(kl_divergence(p, q).mean())
    return float(0.5 * np.square(q - p).sum() / max(np.square(p).sum(), 1e-30))


def judge(asked: Asked) -> dict[str, Judgement]:
    """Measures the totals of units; the shares of their rows are predicted.

    Units that ``units`` leaves out keep their prediction.
    """
    found = fisher.losses(asked)
    for name, totals in _totals(asked).items():
        found[name] *= totals / np.maximum(found[name].sum(axis=0), 1e-30)
    return {
        unit.name: Judgement.of_losses(found[unit.name], unit.shape[1]) for unit in asked.units
    }


def _totals(asked: Asked) -> dict[str, np.ndarray]:
    """Returns, for the units that are measured, the divergence under each of their options.

    Each unit is rounded with GPTQ and measured alone, all others exact, on held-in samples.

    Raises:
        UsageError: An operator of the model does not run in torch.
    """
    model, context = asked.model, asked.context
    refused = context.runner.unsupported(model.graph)
    if refused:
        why = next(iter(refused.values()))
        raise UsageError(f"metric=kl cannot run this model: {why}", hint="use metric=fisher")
    assert context.calibration is not None
    note = need_note(model, Calibrated)
    chain = _Chain(model, context)
    samples = context.calibration.training[: asked.settings.samples]
    exact = [_exact(chain, feed) for feed in samples]
    units = _spread(asked.units, asked.settings.units)
    totals = {}
    for unit in context.progress.track(units, len(units), "measuring units"):
        found = [
            _measure(chain, unit, one, exact, note, context)
            for one in asked.options[unit.name]
        ]
        totals[unit.name] = np.array(found)
    return totals


def _spread(units: Sequence[Unit], count: int) -> list[Unit]:
    """Returns ``count`` units evenly spread over the model; all when ``count`` is 0."""
    if not count or count >= len(units):
        return list(units)
    return [units[round(at)] for at in np.linspace(0, len(units) - 1, count)]


def _exact(chain: _Chain, feed: Feeds) -> dict[str, torch.Tensor]:
    values = {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in feed.items()}
    chain.run(values, 0, {})
    return values


def _measure(
    chain: _Chain,
    unit: Unit,
    option: Option,
    exact: Sequence[dict[str, torch.Tensor]],
    note: Calibrated,
    context: PassContext,
) -> float:
    weight = torch.from_numpy(unit.matrix())
    factor = Quadratic.of(unit, context.arrays).factor()
    rounded = round_rows(weight, option.bits, option.group, factor)
    other = chain.swapped(unit, rounded.dequantize(option.group).numpy())
    found = []
    for values in exact:
        changed = dict(values)
        chain.run(changed, min(other), other)
        found.append(_divergence(note, values[note.output], changed[note.output]))
    return float(np.mean(found))
