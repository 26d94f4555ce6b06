"""Forward over the blocks, then backward in reverse, with one block in memory at a time.

Samples go in waves, so that what waits at block boundaries stays below ``WAVE_BYTES`` on disk.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.tensor_adapters import to_torch_dtype

from ...ir import Feeds, Unit, Use
from ...ir.analysis.blocks import Block
from ..engine.execution.boundaries import Sample
from ..engine.pipeline.base import PassContext, Runner
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

WAVE_BYTES = 2 << 30


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


@dataclass
class _Stage:
    """A block made ready to run.

    Lookups run apart, because gradients start at what they return. Weights of convolutions are
    inputs, because gradients start at them.
    """

    block: Block
    taps: list[_Tap]
    wanted: list[ir.Value]
    lookups: list[_Tap] = field(init=False)
    convolved: dict[ir.Value, _Tap] = field(init=False)
    inputs: list[ir.Value] = field(init=False)
    outputs: list[ir.Value] = field(init=False)
    _early: torch.nn.Module | None = None
    _main: torch.nn.Module | None = None

    def __post_init__(self) -> None:
        self.lookups = [tap for tap in self.taps if tap.use.kind == "lookup"]
        looked_up = [tap.output for tap in self.lookups]
        self.convolved = {
            tap.moments.unit.weight: tap for tap in self.taps if tap.use.kind == "conv"
        }
        own = [value for value in self.block.inputs if value not in looked_up]
        self.inputs = [*own, *looked_up, *self.convolved]
        products = [tap for tap in self.taps if tap.use.kind == "product"]
        extra = [value for tap in products for value in (tap.output, tap.use.activation)]
        self.outputs = list(dict.fromkeys([*self.wanted, *extra]))

    def build(self, runner: Runner) -> None:
        """Lowers the block once; weights stay where they are."""
        if self._main is not None:
            return
        nodes = [tap.use.node for tap in self.lookups]
        rest = [node for node in self.block.nodes if node not in nodes]
        if nodes:
            # The ids of a lookup may themselves be computed in this block.
            self._early = runner.segment(
                self.block.nodes, self.block.inputs, self._looked_up()
            )
        self._main = runner.segment(rest, self.inputs, self.outputs)

    def _looked_up(self) -> list[ir.Value]:
        """Returns what the lookups return, and their ids."""
        pairs = ((tap.output, tap.use.activation) for tap in self.lookups)
        return list(dict.fromkeys(value for pair in pairs for value in pair))

    def prepare(self, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Returns the inputs of the block, its weights, and what its lookups return."""
        weights = {_name(v): _tensor_of(t.moments.unit) for v, t in self.convolved.items()}
        given = {**given, **weights}
        if self._early is None:
            return given
        with torch.no_grad():
            found = self._early(*(given[_name(value)] for value in self.block.inputs))
        names = [_name(value) for value in self._looked_up()]
        return {**given, **dict(zip(names, found, strict=True))}

    def run(self, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Returns every wanted value of the block."""
        assert self._main is not None
        found = self._main(*(given[_name(value)] for value in self.inputs))
        return dict(zip((_name(value) for value in self.outputs), found, strict=True))


def _name(value: ir.Value) -> str:
    return str(value.name)


def _tensor_of(unit: Unit) -> torch.Tensor:
    """Returns a copy of the weight in its own layout and type."""
    wide = torch.from_numpy(unit.tensor.numpy().astype(np.float32))
    return wide.to(to_torch_dtype(unit.tensor.dtype))


def _stages(
    blocks: Sequence[Block], units: Sequence[Unit], objective: Objective
) -> list[_Stage]:
    place = {node: block.index for block in blocks for node in block.nodes}
    taps: dict[int, list[_Tap]] = defaultdict(list)
    for unit in units:
        for at, use in enumerate(unit.uses):
            taps[place[use.node]].append(_Tap(UnitMoments(unit), at))
    later: set[ir.Value] = set()
    wanted: dict[int, list[ir.Value]] = {}
    for block in reversed(blocks):
        kept = later | set(objective.outputs)
        wanted[block.index] = [value for value in block.outputs if value in kept]
        later |= set(block.inputs)
    return [_Stage(block, taps[block.index], wanted[block.index]) for block in blocks]


@dataclass
class _Sweep:
    """The state that both sweeps share."""

    stages: list[_Stage]
    objective: Objective
    file: MomentFile
    positions: float = 0.0
    said: torch.Tensor | None = None
    seen: dict[str, torch.Tensor] = field(default_factory=dict)

    def forward(self, sample: Sample) -> None:
        """Runs all blocks but the last and keeps what crosses their boundaries."""
        for stage in self.stages[:-1]:
            with torch.no_grad():
                found = stage.run(stage.prepare(sample.given(stage.block)))
            for value in stage.wanted:
                sample.boundaries.put("value", _name(value), found[_name(value)])

    def backward(self, sample: Sample, stage: _Stage) -> None:
        """Runs one block again with gradients and adds to the moments of its units."""
        given = stage.prepare(sample.given(stage.block))
        leaves = {}
        for value in stage.inputs:
            tensor = given[_name(value)]
            if tensor.is_floating_point():
                given[_name(value)] = leaves[_name(value)] = tensor.detach().requires_grad_()
        found = stage.run(given)
        ends = self._ends(sample, stage, found)
        products = [tap for tap in stage.taps if tap.use.kind == "product"]
        tapped = {_name(tap.output): found[_name(tap.output)] for tap in products}
        sources = {**leaves, **{k: v for k, v in tapped.items() if v.requires_grad}}
        gradients = _gradients(ends, sources)
        for tap in products:
            self._add_product(tap, found, gradients, sample)
        for tap in stage.lookups:
            self._add_lookup(tap, given, gradients, sample)
        for value, tap in stage.convolved.items():
            self._add_convolution(tap, gradients.get(_name(value)))
        for value in stage.block.inputs:
            gradient = gradients.get(_name(value))
            if gradient is not None and _name(value) not in sample.feeds:
                sample.boundaries.add("gradient", _name(value), gradient)

    def _ends(
        self, sample: Sample, stage: _Stage, found: dict[str, torch.Tensor]
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Pairs the block's outputs with the gradients that reach them."""
        ends = []
        for value in stage.wanted:
            tensor = found[_name(value)]
            if value in self.objective.outputs:
                gradient = self.objective.gradient(tensor.detach(), sample.generator)
                places = self.objective.positions(tensor)
                real = sample.real_of(places)
                if real is not None:
                    gradient = gradient * real.reshape(gradient.shape[:-1])[..., None]
                    places = int(real.sum())
                self.positions += places / len(self.objective.outputs)
                if tensor.requires_grad:
                    ends.append((tensor, gradient))
            later = sample.boundaries.get("gradient", _name(value))
            if later is not None and tensor.requires_grad:
                ends.append((tensor, later))
        return ends

    def _add_product(
        self,
        tap: _Tap,
        found: dict[str, torch.Tensor],
        gradients: dict[str, torch.Tensor],
        sample: Sample,
    ) -> None:
        everything = found[_name(tap.use.activation)]
        real = sample.real_of(everything.shape[:-1].numel())
        inputs = _flat(everything, real)
        name = tap.moments.name
        if not len(inputs):  # all of it is padding: sequences go on with the next sample's
            self.file.keep(name(tap.at, "tokens"), _spread(torch.ones(0), real))
            return
        positions = 0
        if self.objective.kind == "logits" and tap.output in self.objective.outputs:
            chances = _flat(found[_name(tap.output)], real).softmax(dim=1)
            self._expect(chances)
            spread = chances * (1 - chances)
            rows, weights = spread.sum(dim=0), spread.sum(dim=1)
            rows = tap.gain**2 * ((1 - UNSEEN) * rows + UNSEEN * rows.mean())
            weights = (weights / weights.mean().clamp_min(1e-30)).clamp(*WEIGHT_RANGE)
        elif _name(tap.output) in gradients:
            gradient = tap.gain * _flat(gradients[_name(tap.output)], real)
            rows, weights = gradient.square().sum(dim=0), token_weights(gradient)
            self._add_coupling(tap, gradient)
        else:
            rows = tap.gain**2 * own_error(_flat(found[_name(tap.output)], real))
            weights = torch.ones(len(inputs))
            positions = len(inputs)
        self.file.keep(name(tap.at, "tokens"), _spread(weights, real))
        self.file.add(name(tap.at, "rows"), rows, positions)
        self.file.add(name(tap.at, "hessian"), weighted_gram(inputs, weights), len(inputs))
        variance = rounding_variance(inputs, weights)
        self.file.add(name(tap.at, "activation"), variance, len(inputs))
        self.file.add_inputs(tap.moments, tap.at, inputs)

    def _add_coupling(self, tap: _Tap, gradient: torch.Tensor) -> None:
        name = tap.moments.name(tap.at, "coupling")
        if name in self.file:
            self.file.add(name, gradient.T @ gradient, 0)

    def _add_convolution(self, tap: _Tap, gradient: torch.Tensor | None) -> None:
        if gradient is None:
            return
        unit = tap.moments.unit
        rows = gradient.float().movedim(unit.row_axis, 0).reshape(unit.shape)
        self.file.add(tap.moments.name(tap.at, "rows"), rows.square().mean(dim=1), 0)

    def _expect(self, chances: torch.Tensor) -> None:
        """Notes how often the model itself would say each token: a prior for lookups."""
        total = chances.sum(dim=0)
        self.said = total if self.said is None else self.said + total

    def _add_lookup(
        self,
        tap: _Tap,
        given: dict[str, torch.Tensor],
        gradients: dict[str, torch.Tensor],
        sample: Sample,
    ) -> None:
        rows = tap.moments.unit.shape[0]
        ids = given[_name(tap.use.activation)].reshape(-1) % rows
        real = sample.real_of(len(ids))
        ids = ids if real is None else ids[real]
        if not len(ids):
            return
        counts = torch.bincount(ids, minlength=rows).float()
        name = tap.moments.name(tap.at, "rows")
        self.seen[name] = self.seen[name] + counts if name in self.seen else counts
        if _name(tap.output) in gradients:
            gradient = _flat(gradients[_name(tap.output)], real)
            gram = gradient.T @ gradient / len(ids)
        else:
            gram = torch.diag(own_error(_flat(given[_name(tap.output)], real)))
        self.file.add(tap.moments.name(tap.at, "hessian"), gram, len(ids))

    def add_frequencies(self) -> None:
        """Adds how often each row is looked up; what the model says is known only now."""
        for name, counts in self.seen.items():
            unseen = max(UNSEEN, unseen_share(counts))
            if self.said is not None and len(self.said) == len(counts):
                counts = (counts + self.said * (counts.sum() / self.said.sum())) / 2
                unseen = UNSEEN
            self.file.add(name, (1 - unseen) * counts + unseen * counts.mean(), 0)


def _flat(tensor: torch.Tensor, real: torch.Tensor | None) -> torch.Tensor:
    """Returns positions that are no padding x channels, in float32."""
    flat = tensor.detach().reshape(-1, tensor.shape[-1]).float()
    return flat if real is None else flat[real]


def _spread(weights: torch.Tensor, real: torch.Tensor | None) -> torch.Tensor:
    """Returns the weights of all positions, given those of the ones that are no padding."""
    if real is None:
        return weights
    everywhere = torch.zeros(len(real), dtype=weights.dtype)
    everywhere[real] = weights
    return everywhere


def _gradients(
    ends: list[tuple[torch.Tensor, torch.Tensor]], sources: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Returns the gradient that reaches each source, where one does."""
    if not ends or not sources:
        return {}
    outputs, gradients = zip(*ends, strict=True)
    found = torch.autograd.grad(outputs, list(sources.values()), gradients, allow_unused=True)
    return {k: g.detach() for k, g in zip(sources, found, strict=True) if g is not None}


def _waves(samples: list[Sample], run: Callable[[Sample], None]) -> Iterator[list[Sample]]:
    """Runs samples until their boundaries fill ``WAVE_BYTES``, yields them, and goes on."""
    wave: list[Sample] = []
    for sample in samples:
        run(sample)
        wave.append(sample)
        size = sample.boundaries.size()
        if size * (len(wave) + 1) > WAVE_BYTES:
            yield wave
            wave = []
    if wave:
        yield wave


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
    mask = context.calibration.mask if context.calibration is not None else None
    state = _Sweep(_stages(blocks, units, objective), objective, file)
    for stage in state.stages:
        stage.build(context.runner)
    total = len(feeds) * (1 + len(state.stages))
    steps = iter(context.progress.track(range(total), total, "calibrating"))
    samples = [
        Sample(feed, context.scratch / f"sample-{at:05d}", context.seed * 1_000_003 + at, mask)
        for at, feed in enumerate(feeds)
    ]

    def forward(sample: Sample) -> None:
        next(steps, None)
        state.forward(sample)

    for wave in _waves(samples, forward):
        for stage in reversed(state.stages):
            for sample in wave:
                state.backward(sample, stage)
                next(steps, None)
            file.flush()
        for sample in wave:
            sample.boundaries.clear()
    state.add_frequencies()
    next(steps, None)
    return state.positions
