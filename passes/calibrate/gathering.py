"""What one block of one sample, run backward, adds to the moments of its units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import onnx_ir as ir
import torch

from ...ir import Unit, Use
from ...ir.analysis.blocks import Block
from ..engine.execution.executor import BlockRunner, weight_of
from ..engine.execution.samples import Sample, Values
from ..engine.statistics.moments import (
    UNSEEN,
    WEIGHT_RANGE,
    MomentSums,
    UnitMoments,
    normalized,
    own_error,
    rounding_variance,
    token_weights,
)
from ..engine.statistics.objective import Objective

SAID = "objective/0/said"  # how often the model itself would say each token
SEEN = "seen"  # how often each row of a table was looked up


@dataclass(frozen=True)
class Tap:
    """One use of a unit inside a block."""

    moments: UnitMoments
    at: int

    @property
    def use(self) -> Use:
        """The use."""
        return self.moments.unit.uses[self.at]

    @property
    def output(self) -> ir.Value:
        """What its node makes."""
        return self.use.node.outputs[0]

    @property
    def gain(self) -> float:
        """By what the product is multiplied before it is the output: ``alpha`` of a Gemm."""
        if self.use.node.op_type != "Gemm":
            return 1.0
        return float(self.use.node.attributes.get_float("alpha", 1.0))

    def name(self, what: str) -> str:
        """Returns the name of an array of this use."""
        return self.moments.name(self.at, what)


def taps_of(blocks: Sequence[Block], units: Sequence[Unit]) -> dict[Block, list[Tap]]:
    """Returns the uses of units by the block that they are in."""
    place = {node: block for block in blocks for node in block.nodes}
    taps: dict[Block, list[Tap]] = {block: [] for block in blocks}
    for unit in units:
        for at, use in enumerate(unit.uses):
            taps[place[use.node]].append(Tap(UnitMoments(unit), at))
    return taps


@dataclass
class Gathering:
    """Adds samples to the sums of one block.

    Attributes:
        runner: Runs blocks.
        block: The block.
        taps: The uses of units in it.
        objective: What the divergence is measured on.
        sums: What is gathered.
        positions: At how many places the loss was taken.
        touched: Names of arrays of weights that got a gradient.
    """

    runner: BlockRunner
    block: Block
    taps: Sequence[Tap]
    objective: Objective
    sums: MomentSums
    positions: float = 0.0
    touched: set[str] = field(default_factory=set)

    def add(self, sample: Sample) -> None:
        """Runs a sample backward through the block and adds to the moments of its units."""
        products, lookups = (
            [tap for tap in self.taps if tap.use.kind == kind]
            for kind in ("product", "lookup")
        )
        # A weight has one gradient, however many readers of the block give parts of it.
        whole = {tap.moments.unit.name: tap for tap in self.taps if tap.use.takes_floats}
        values, gradients = self.runner.backward(
            sample,
            self.block,
            ends=partial(self._ends, sample),
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

    def merge(self, later: Gathering) -> None:
        """Adds what later samples have shown."""
        self.sums.merge(later.sums)
        self.positions += later.positions
        self.touched |= later.touched

    @property
    def untouched(self) -> list[str]:
        """Names of ``rows`` of weights that are read as floats and got no gradient."""
        names = [tap.name("rows") for tap in self.taps if tap.use.takes_floats]
        return [name for name in names if name not in self.touched]

    def _ends(self, sample: Sample, values: Values) -> dict[str, torch.Tensor]:
        """Returns the gradients of the loss at those of its outputs that the block makes."""
        ends = {}
        for place, value in enumerate(self.objective.outputs):
            if value in self.block.outputs:
                output = values[str(value.name)].detach()
                generator = sample.generator(place)
                gradient, places = self.objective.gradient(output, values.padding, generator)
                self.positions += places / len(self.objective.outputs)
                ends[str(value.name)] = gradient
        return ends

    def _add_product(self, tap: Tap, values: Values, gradients: Values) -> None:
        inputs = values.tokens(tap.use.activation)
        if not len(inputs):  # all of it is padding
            return
        positions = 0
        if self.objective.kind == "logits" and tap.output in self.objective.outputs:
            chances = values.tokens(tap.output).softmax(dim=1)
            self.sums.add(SAID, chances.sum(dim=0), 0)
            spread = chances * (1 - chances)
            rows, weights = spread.sum(dim=0), spread.sum(dim=1)
            rows = tap.gain**2 * ((1 - UNSEEN) * rows + UNSEEN * rows.mean())
            weights = (weights / weights.mean().clamp_min(1e-30)).clamp(*WEIGHT_RANGE)
        elif str(tap.output.name) in gradients:
            gradient = tap.gain * gradients.tokens(tap.output)
            rows, weights = gradient.square().sum(dim=0), token_weights(gradient)
            if tap.name("coupling") in self.sums:
                self.sums.add_gram(tap.name("coupling"), gradient, None, 0)
        else:
            rows = tap.gain**2 * own_error(values.tokens(tap.output))
            weights = inputs.new_ones(len(inputs))
            positions = len(inputs)
        self.sums.keep(tap.name("tokens"), weights)
        self.sums.add(tap.name("rows"), rows, positions)
        even = normalized(weights)
        self.sums.add_gram(tap.name("hessian"), inputs, even, len(inputs))
        variance = rounding_variance(inputs, weights)
        self.sums.add(tap.name("activation"), variance, len(inputs))
        self.sums.add_inputs(tap.moments, tap.at, inputs)

    def _add_array(self, tap: Tap, gradient: torch.Tensor | None) -> None:
        unit = tap.moments.unit
        if gradient is None or not gradient.any():
            return
        self.touched.add(tap.name("rows"))
        matrix = gradient.float().movedim(unit.row_axis, 0).reshape(unit.shape)
        rows = matrix.square().mean(dim=1)  # some gates may not have mattered to the samples
        rows = (1 - UNSEEN) * rows + UNSEEN * rows.mean()
        self.sums.add(tap.name("rows"), rows, 0)
        if tap.name("hessian") in self.sums:
            gram = matrix.T @ matrix
            count = max(round(float(gram.trace() ** 2 / gram.square().sum())), 1)
            self.sums.add(tap.name("hessian"), gram / count, count)

    def _add_lookup(self, tap: Tap, values: Values, gradients: Values) -> None:
        rows = tap.moments.unit.shape[0]
        ids = values.entries(tap.use.activation) % rows
        if not len(ids):
            return
        self.sums.add(tap.name(SEEN), torch.bincount(ids, minlength=rows).float(), 0)
        found = values.tokens(tap.output)
        if str(tap.output.name) not in gradients:
            self.sums.add(tap.name("hessian"), torch.diag(own_error(found)), len(ids))
            return
        # A row of zeros (that of padding) is exact in any codes, and a norm after it makes
        # its gradient larger than all others.
        gradient = gradients.tokens(tap.output) * found.any(dim=1, keepdim=True)
        self.sums.add_gram(tap.name("hessian"), gradient, None, len(ids))
