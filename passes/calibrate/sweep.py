"""Forward over the blocks, then backward in reverse: every unit's moments on the way back.

Samples go in waves, so that what waits at block boundaries has room on disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import onnx_ir as ir
import torch

from ...ir import Feeds, Unit, Use
from ...ir.analysis.blocks import Block
from ..engine.execution.executor import BlockRunner, weight_of
from ..engine.execution.samples import Sample, Samples, Values
from ..engine.pipeline.base import PassContext
from ..engine.statistics.moments import (
    UNSEEN,
    WEIGHT_RANGE,
    MomentFile,
    UnitMoments,
    own_error,
    rounding_variance,
    token_weights,
    unseen_share,
    weighted_gram,
)
from ..engine.statistics.objective import Objective


@dataclass(frozen=True)
class _Tap:
    """One use of a unit inside a block."""

    moments: UnitMoments
    at: int

    @property
    def use(self) -> Use:
        return self.moments.unit.uses[self.at]

    @property
    def output(self) -> ir.Value:
        return self.use.node.outputs[0]

    @property
    def gain(self) -> float:
        """By what the product is multiplied before it is the output: ``alpha`` of a Gemm."""
        if self.use.node.op_type != "Gemm":
            return 1.0
        return float(self.use.node.attributes.get_float("alpha", 1.0))


def _taps(blocks: Sequence[Block], units: Sequence[Unit]) -> dict[Block, list[_Tap]]:
    place = {node: block for block in blocks for node in block.nodes}
    taps: dict[Block, list[_Tap]] = {block: [] for block in blocks}
    for unit in units:
        for at, use in enumerate(unit.uses):
            taps[place[use.node]].append(_Tap(UnitMoments(unit), at))
    return taps


@dataclass
class _Moments:
    """Adds what single blocks of single samples show to the moments of units."""

    objective: Objective
    file: MomentFile
    positions: float = 0.0
    said: torch.Tensor | None = None
    seen: dict[str, torch.Tensor] = field(default_factory=dict)
    untouched: dict[str, _Tap | None] = field(default_factory=dict)

    def add(
        self, runner: BlockRunner, sample: Sample, block: Block, taps: Sequence[_Tap]
    ) -> None:
        """Runs one block backward and adds to the moments of its units."""
        products, lookups = (
            [tap for tap in taps if tap.use.kind == kind] for kind in ("product", "lookup")
        )
        # A weight has one gradient, however many readers of the block give parts of it.
        whole = {tap.moments.unit.name: tap for tap in taps if tap.use.takes_floats}
        values, gradients = runner.backward(
            sample,
            block,
            ends=partial(self._ends, block, sample.generator),
            leaves=[tap.output for tap in lookups],
            taps=[tap.output for tap in products],
            wanted=[tap.use.activation for tap in (*products, *lookups)],
            weights={
                tap.moments.unit.weight: weight_of(tap.moments.unit) for tap in whole.values()
            },
        )
        for tap in products:
            self._add_product(tap, values, gradients)
        for tap in lookups:
            self._add_lookup(tap, values, gradients)
        for name, tap in whole.items():
            self._add_array(tap, gradients.get(name))

    def _ends(
        self, block: Block, generator: torch.Generator, values: Values
    ) -> dict[str, torch.Tensor]:
        """Returns the gradients of the loss at those of its outputs that the block makes."""
        ends = {}
        for value in block.outputs:
            if value in self.objective.outputs:
                output = values[_name(value)].detach()
                gradient, places = self.objective.gradient(output, values.padding, generator)
                self.positions += places / len(self.objective.outputs)
                ends[_name(value)] = gradient
        return ends

    def _add_product(self, tap: _Tap, values: Values, gradients: Values) -> None:
        inputs = values.tokens(tap.use.activation)
        if not len(inputs):  # all of it is padding
            return
        name = tap.moments.name
        positions = 0
        if self.objective.kind == "logits" and tap.output in self.objective.outputs:
            chances = values.tokens(tap.output).softmax(dim=1)
            self._expect(chances)
            spread = chances * (1 - chances)
            rows, weights = spread.sum(dim=0), spread.sum(dim=1)
            rows = tap.gain**2 * ((1 - UNSEEN) * rows + UNSEEN * rows.mean())
            weights = (weights / weights.mean().clamp_min(1e-30)).clamp(*WEIGHT_RANGE)
        elif _name(tap.output) in gradients:
            gradient = tap.gain * gradients.tokens(tap.output)
            rows, weights = gradient.square().sum(dim=0), token_weights(gradient)
            self._add_coupling(tap, gradient)
        else:
            rows = tap.gain**2 * own_error(values.tokens(tap.output))
            weights = torch.ones(len(inputs))
            positions = len(inputs)
        self.file.keep(name(tap.at, "tokens"), weights)
        self.file.add(name(tap.at, "rows"), rows, positions)
        self.file.add(name(tap.at, "hessian"), weighted_gram(inputs, weights), len(inputs))
        variance = rounding_variance(inputs, weights)
        self.file.add(name(tap.at, "activation"), variance, len(inputs))
        self.file.add_inputs(tap.moments, tap.at, inputs)

    def _add_coupling(self, tap: _Tap, gradient: torch.Tensor) -> None:
        name = tap.moments.name(tap.at, "coupling")
        if name in self.file:
            self.file.add(name, gradient.T @ gradient, 0)

    def _add_array(self, tap: _Tap, gradient: torch.Tensor | None) -> None:
        unit = tap.moments.unit
        self.untouched.setdefault(unit.name, tap)
        if gradient is None or not gradient.any():
            return
        self.untouched[unit.name] = None
        matrix = gradient.float().movedim(unit.row_axis, 0).reshape(unit.shape)
        rows = matrix.square().mean(dim=1)  # some gates may not have mattered to the samples
        rows = (1 - UNSEEN) * rows + UNSEEN * rows.mean()
        self.file.add(tap.moments.name(tap.at, "rows"), rows, 0)
        hessian = tap.moments.name(tap.at, "hessian")
        if hessian in self.file:
            gram = matrix.T @ matrix
            count = max(round(float(gram.trace() ** 2 / gram.square().sum())), 1)
            self.file.add(hessian, gram / count, count)

    def add_untouched(self) -> None:
        """Judges arrays that no sample gave a gradient by their own relative error.

        That a sequence of one token never reads the recurrent weights makes them no cheaper.
        """
        for tap in filter(None, self.untouched.values()):
            unit = tap.moments.unit
            energy = float(torch.from_numpy(unit.matrix()).square().sum())
            rows = torch.full((unit.shape[0],), 1 / max(energy, 1e-24))
            self.file.add(tap.moments.name(tap.at, "rows"), rows, 1)

    def _expect(self, chances: torch.Tensor) -> None:
        """Notes how often the model itself would say each token: a prior for lookups."""
        total = chances.sum(dim=0)
        self.said = total if self.said is None else self.said + total

    def _add_lookup(self, tap: _Tap, values: Values, gradients: Values) -> None:
        rows = tap.moments.unit.shape[0]
        ids = values.entries(tap.use.activation) % rows
        if not len(ids):
            return
        counts = torch.bincount(ids, minlength=rows).float()
        name = tap.moments.name(tap.at, "rows")
        self.seen[name] = self.seen[name] + counts if name in self.seen else counts
        found = values.tokens(tap.output)
        if _name(tap.output) in gradients:
            # A row of zeros (that of padding) is exact in any codes, and a norm after it makes
            # its gradient larger than all others.
            gradient = gradients.tokens(tap.output) * found.any(dim=1, keepdim=True)
            gram = gradient.T @ gradient / len(ids)
        else:
            gram = torch.diag(own_error(found))
        self.file.add(tap.moments.name(tap.at, "hessian"), gram, len(ids))

    def add_frequencies(self) -> None:
        """Adds how often each row is looked up; what the model says is known only now."""
        for name, counts in self.seen.items():
            unseen = max(UNSEEN, unseen_share(counts))
            if self.said is not None and len(self.said) == len(counts):
                counts = (counts + self.said * (counts.sum() / self.said.sum())) / 2
                unseen = UNSEEN
            self.file.add(name, (1 - unseen) * counts + unseen * counts.mean(), 0)


def _name(value: ir.Value) -> str:
    return str(value.name)


def sweep(
    blocks: Sequence[Block],
    units: Sequence[Unit],
    objective: Objective,
    feeds: Sequence[Feeds],
    file: MomentFile,
    context: PassContext,
) -> float:
    """Runs both sweeps and adds every unit's moments to ``file``.

    Args:
        blocks: The graph in execution order.
        units: The units to gather moments for.
        objective: What the divergence is measured on.
        feeds: The samples.
        file: The accumulators.
        context: The runner that lowers blocks, the scratch folder, the seed and the progress.

    Returns:
        At how many places the loss was taken.
    """
    runner = BlockRunner(context.runner, blocks, objective.outputs)
    moments, taps = _Moments(objective, file), _taps(blocks, units)
    samples = Samples.of(context, feeds, on_disk=True)
    total = len(samples) * (1 + len(blocks))
    steps = iter(context.progress.track(range(total), total, "calibrating"))

    def forward(sample: Sample) -> None:
        next(steps, None)
        runner.run(sample, stop=len(blocks) - 1)

    for wave in samples.waves(forward):
        for block in reversed(blocks):
            for sample in wave:
                moments.add(runner, sample, block, taps[block])
                next(steps, None)
            file.flush()
    moments.add_frequencies()
    moments.add_untouched()
    next(steps, None)
    return moments.positions
