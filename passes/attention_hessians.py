"""The pass ``attention-hessians``: rounding that sees through the softmax."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ..ir import (
    Annotation,
    AttentionUnits,
    BlockId,
    CachedFile,
    Calibrated,
    LocalHessian,
    NoAttention,
    TensorStats,
    Unit,
    UsageError,
    annotate,
    drop_note,
    need_note,
    quantizable,
)
from ..ir.analysis.attention import Attention, Found, find_attention
from ..ir.analysis.blocks import Block, blocks_of
from ..ir.content_key import model_key
from ..ir.sealed_file import read_seal
from .engine.execution.executor import BlockRunner
from .engine.execution.extent import FLOAT_BYTES, Extent
from .engine.execution.samples import Samples
from .engine.numerics.row_hessians import Key, RowHessians
from .engine.pipeline.base import Pass, PassContext, Promise
from .engine.pipeline.forecast import Forecast
from .engine.pipeline.work import Kind, Work
from .engine.statistics.local_hessians import LocalHessians
from .engine.statistics.moved import moves_key
from .engine.statistics.sequence import check_can_run

_FORMAT = "mpqc.local/2"
_ROLES = ("queries", "keys", "values", "output")


@dataclass(frozen=True)
class AttentionHessians(Pass):
    """Round every product against the output of its layer; for attention, after the softmax.

    For an attention, fused or decomposed, the Hessians of the projections are those of
    ``|dY|^2`` after its output product, one for every head: exact for values and output,
    ``sum_t |dY/dq_t|^2 x_t x_t^T`` for queries, and the same without the terms between tokens
    for keys. Every other product gets ``E[x x^T]``. Only rounding and ``metric=trace`` use
    them: predicted divergences stay those of ``calibrate``.

    An attention with units that cannot be identified keeps ``E[x x^T]``; ``#no-attention``
    says why.

    Attributes:
        probes: Random signs to sample the gradients of queries and keys with; 0 follows every
            direction of a head, which is exact for queries.
        samples: Use this many samples only, the first ones; 0 uses all.
    """

    name: ClassVar[str] = "attention-hessians"
    reads: ClassVar[tuple[type[Annotation], ...]] = (BlockId, TensorStats, Calibrated)
    writes: ClassVar[tuple[type[Annotation], ...]] = (
        LocalHessian,
        AttentionUnits,
        NoAttention,
    )
    expensive: ClassVar[bool] = True
    promise: ClassVar[Promise] = Promise.SAME_GRAPH
    probes: int = 8
    samples: int = 0

    def __post_init__(self) -> None:
        if self.probes < 0:
            raise UsageError(f"attention-hessians cannot follow {self.probes} signs")
        if self.samples < 0:
            raise UsageError(f"attention-hessians cannot use {self.samples} samples")

    def preflight(self, model: ir.Model, context: PassContext, forecast: Forecast) -> None:
        """Refuses a model without an attention that can be bound."""
        _need_bound(find_attention(model))

    def work(self, model: ir.Model, context: PassContext, forecast: Forecast) -> Work:
        """A run with gradients for every sign, and a Hessian for every head."""
        if context.calibration is None:
            return Work()
        extent, units = Extent.of(model, context.calibration), quantizable(model)
        count = len(context.calibration.first(self.samples))
        heads = {
            part.unit: one.heads
            for one in find_attention(model).bound
            for part in one.projections
        }
        grams = stored = 0.0
        for unit in units:
            size = float(unit.shape[1]) ** 2 * heads.get(unit, 1)
            grams += size * sum(extent.places(use) for use in unit.uses)
            stored += FLOAT_BYTES * size
        once = extent.multiply_adds(units)
        attending = extent.multiply_adds(heads)
        amounts = {
            Kind.SWEEP: count * (2 * once + self.probes * attending),
            Kind.PRODUCT: count * grams,
            Kind.WRITE: stored,
        }
        held = stored / max(len(blocks_of(model)), 1)
        return Work(amounts, held=held, kept=stored)

    def run(self, model: ir.Model, context: PassContext) -> bool:
        """Annotates every unit that multiplies, and every attention."""
        found = find_attention(model)
        _need_bound(found)
        check_can_run(model, context, self.name)
        units = quantizable(model)
        files = self._files(model, units, context)
        facts = {block: file.facts(context.progress.say) for block, file in files.items()}
        if None in facts.values():
            self._gather(model, units, found.bound, files, context)
        refused = {one.node: one.why for one in found.unmatched}
        by_name = {str(one.node.name): one.node for one in found.bound}
        for file in files.values():
            context.arrays.mount(file.path)
            said = read_seal(file.path).facts["refused"]
            refused |= {by_name[name]: why for name, why in said.items()}
        bound = [one for one in found.bound if one.node not in refused]
        if not bound:
            raise UsageError(f"{self.name} has nothing to act on: {_first(refused)}")
        _annotate_attention(bound, refused)
        _annotate_units(units, bound, self.probes, context)
        context.report[self.name] = {
            "attentions": len(bound),
            "refused": {str(node.name): why for node, why in refused.items()},
        }
        return True

    def _files(
        self, model: ir.Model, units: Sequence[Unit], context: PassContext
    ) -> dict[Block, CachedFile]:
        """Returns where the Hessians of each block are or belong."""
        stats, moves = need_note(model, Calibrated).stats, moves_key(units, context.arrays)
        inputs = (_FORMAT, stats, self, moves, model_key(model, weights=False))
        return {block: context.cached_file(*inputs, block.index) for block in blocks_of(model)}

    def _gather(
        self,
        model: ir.Model,
        units: Sequence[Unit],
        bound: Sequence[Attention],
        files: Mapping[Block, CachedFile],
        context: PassContext,
    ) -> None:
        """Runs all samples through the blocks, one block after the other."""
        assert context.calibration is not None
        gather = LocalHessians(bound, context.runner, self.probes, context.seed)
        runner = BlockRunner(context.runner, list(files))
        samples = Samples.of(context, context.calibration.first(self.samples), on_disk=True)
        steps = context.progress.track(
            files.items(), len(files), "gathering Hessians of attention"
        )
        for block, file in steps:
            wanted = gather.begin(block, units)
            before = set(gather.refused)
            for values in runner.forward(samples, block, wanted):
                gather.add(values)
            new = {str(n.name): w for n, w in gather.refused.items() if n not in before}
            file.write(_arrays(gather.end()), {"refused": new})


def _need_bound(found: Found) -> None:
    if not found.bound:
        why = {one.node: one.why for one in found.unmatched}
        raise UsageError(
            f"attention-hessians has nothing to act on: {_first(why)}",
            hint="leave it out; mpqc inspect shows the recognised attentions",
        )


def _first(refused: Mapping[ir.Node, str]) -> str:
    for node, why in refused.items():
        return f"{node.op_type} {node.name!r} is not an attention that can be bound: {why}"
    return "the model has no softmax and no fused attention"


def _arrays(found: Mapping[Key, RowHessians]) -> dict[str, np.ndarray]:
    arrays = {}
    for (name, at), one in found.items():
        arrays[f"{name}/{at}/local"] = one.matrices.cpu().numpy()
        arrays[f"{name}/{at}/owners"] = one.owners.cpu().numpy().astype(np.int32)
        arrays[f"{name}/{at}/trace"] = np.array([one.trace()], np.float32)
    return arrays


def _annotate_attention(bound: Sequence[Attention], refused: Mapping[ir.Node, str]) -> None:
    for node, why in refused.items():
        annotate(node, NoAttention(why))
        drop_note(node, AttentionUnits)
    for one in bound:
        drop_note(one.node, NoAttention)
        queries, keys, values, output = (part.unit.name for part in one.projections)
        note = AttentionUnits(
            queries=queries,
            keys=keys,
            values=values,
            output=output,
            heads=one.heads,
            kv_heads=one.kv_heads,
            head_size=one.head_size,
            causal=one.causal,
            rope=one.rope,
        )
        annotate(one.node, note)


def _annotate_units(
    units: Sequence[Unit], bound: Sequence[Attention], probes: int, context: PassContext
) -> None:
    roles: dict[str, dict[str, None]] = {}
    for one in bound:
        for role, part in zip(_ROLES, one.projections, strict=True):
            roles.setdefault(part.unit.name, {})[role] = None
    for unit in units:
        if any(use.takes_floats for use in unit.uses):
            continue
        lookups = [use for use in unit.uses if use.kind == "lookup"]
        names = [f"{unit.name}/{at}" for at in range(len(unit.uses))]
        names = [name for name in names if f"{name}/local" in context.arrays]
        traces = [float(context.arrays.get(f"{name}/trace")[0]) for name in names]
        owners = [int(context.arrays.get(f"{name}/owners").max()) + 1 for name in names]
        found = tuple(roles.get(unit.name, {"product": None} if names else {"lookup": None}))
        trace = sum(traces) + len(lookups) / unit.shape[0]
        annotate(
            unit.notes, LocalHessian(unit.name, found, max(owners, default=0), trace, probes)
        )
