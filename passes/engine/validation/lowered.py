"""Checks a pass that stores units as codes: each computes what its simulation computed.

The nodes that took the place of a use are run on random inputs, and so is the node that stood
there, with the weight that the codes stand for. Products get rows of random signs: every
weight counts as much as any other then, and a single code that is off by one is hundreds of
times what rounding of float32 explains. Lookups give every row, convolutions their weight.
Rounded activations are left out (see ``without_rounding.py``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch

from ....ir import (
    ArrayStore,
    Miscompiled,
    Unit,
    Use,
    all_nodes,
    find_units,
    quantizable,
)
from ....ir.analysis.static_values import StaticValues
from ..execution.parallel import for_each
from ..pipeline.base import PassContext, Runner
from .difference import find_difference
from .lockstep import CannotRun
from .slices import Slice, slice_of, values_by_name
from .stored import Inconsistent, is_rounded, stored_matrix
from .structure import is_same_tensor
from .without_rounding import without_rounding

_PROBES = 8  # rows of signs: two errors that cancel in one do not in all of them
_ROWS_AT_ONCE = 4096  # of a table
_BYTES = 24  # of memory for each weight of a unit that is compared
_SINGLE_ROWS = 64  # of a table that is asked for one row at a time
_TOLERANCE = 1e-5  # float32 sums of 8192 numbers stay below a tenth of it
_LAST_ROUNDING = {ir.DataType.FLOAT16: 1e-3, ir.DataType.BFLOAT16: 8e-3}
_HALF_TOLERANCE = 5e-3  # where the nodes compute in float16 and nothing else

Tensors = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Rounded:
    """Units before they are stored as codes.

    Attributes:
        model: A copy of the graph that shares its tensors.
        arrays: The codes; the pass that stores them in the graph forgets its own.
    """

    model: ir.Model
    arrays: ArrayStore

    @classmethod
    def of(cls, model: ir.Model, arrays: ArrayStore) -> Rounded:
        """Keeps what a pass is about to replace."""
        kept = ArrayStore()
        for name, array in arrays.in_memory().items():
            kept.put(name, array)
        return cls(model.clone(), kept)

    def check(self, pass_: str, model: ir.Model, context: PassContext) -> str:
        """Compares every use of every rounded unit; returns why some were not compared.

        Args:
            pass_: Name of the pass that stored them.
            model: The graph now.
            context: Supplies the runner, and the seed of random inputs.

        Raises:
            Miscompiled: A unit computes something else.
        """
        units = [unit for unit in quantizable(self.model) if is_rounded(unit)]
        probe = _Probe(self.model, without_rounding(model), context.runner)
        in_float = {unit.name: unit.tensor for unit in find_units(model)}
        refused: list[str] = []

        def fault(unit: Unit) -> str:
            if unit.name in in_float:
                same = is_same_tensor(in_float[unit.name], unit.tensor)
                return "" if same else "it stays in float, but its weight changed"
            try:
                return self._fault(unit, probe, context.seed)
            except CannotRun as error:
                refused.append(f"unit {unit.name!r}: {error}")
                return ""

        faults = for_each(
            fault,
            units,
            context.progress,
            f"validating {pass_}",
            need=lambda unit: _BYTES * unit.size,
        )
        for unit, found in zip(units, faults, strict=True):
            if found:
                raise Miscompiled(f"{pass_}: unit {unit.name!r}: {found}")
        return min(refused, default="")

    def _fault(self, unit: Unit, probe: _Probe, seed: int) -> str:
        """Returns what is wrong with a unit, in words; empty when nothing is."""
        generator = torch.Generator().manual_seed(seed)
        try:
            matrix = torch.from_numpy(stored_matrix(unit, self.arrays))
        except Inconsistent as error:
            return str(error)
        if unit.uses[0].takes_floats:
            return probe.weight_fault(unit, matrix)
        faults = (probe.fault(use, matrix, generator) for use in unit.uses)
        return next(filter(None, faults), "")


class _Probe:
    """Two graphs whose values of the same name should be the same."""

    def __init__(self, before: ir.Model, after: ir.Model, runner: Runner) -> None:
        nodes = list(before.graph)
        self._known = {_name(one) for one in before.graph.inputs} | values_by_name(
            nodes
        ).keys()
        self._made = values_by_name(list(all_nodes(after.graph)))
        self._static = StaticValues(before), StaticValues(after)
        self._runner = runner

    def fault(self, use: Use, matrix: torch.Tensor, generator: torch.Generator) -> str:
        """Returns how what stands for a use differs from it, in words; empty if it does not.

        Args:
            use: A use of a unit in the graph before.
            matrix: What the unit's codes stand for, rows x columns.
            generator: Draws random inputs.
        """
        end = use.node.outputs[0]
        made = self._made.get(_name(end))
        if made is None:
            return f"nothing makes {_name(end)!r} any more"
        weight = use.node.inputs[use.index]
        assert weight is not None
        old = slice_of(end, lambda one: one is weight or one not in self._static[0])
        given = [one for one in old.inputs if one is not weight]
        new = slice_of(made, self._ends)
        sources = [_name(one) for one in new.inputs]
        strange = [one for one in sources if one not in map(_name, given)]
        if strange:
            return f"{_name(end)!r} is made of {strange[0]!r}, which it was not before"
        before = self._segment(Slice(old.nodes, (*given, weight)), end)
        after = self._segment(new, made)
        for probe in _inputs(use, given, matrix.shape, generator):
            expected = before(*probe, _laid_out(use, matrix))[0]
            by_name = dict(zip(map(_name, given), probe, strict=True))
            try:
                actual, tolerance = _run(after, [by_name[source] for source in sources])
            except Exception as error:  # operators fail in ways of their own
                return f"{_name(end)!r} cannot be computed: {' '.join(str(error).split())}"
            found = find_difference(_name(end), expected, actual, tolerance, by_channel=True)
            if found is not None:
                return str(found)
        return ""

    def _ends(self, value: ir.Value) -> bool:
        """Tells whether a value was there before the pass."""
        return _name(value) in self._known and value not in self._static[1]

    def _segment(self, part: Slice, end: ir.Value) -> torch.nn.Module:
        refused = self._runner.unsupported(part.nodes)
        if refused:
            raise CannotRun(next(iter(refused.values())))
        return self._runner.segment(part.nodes, part.inputs, [end]).float()

    def weight_fault(self, unit: Unit, matrix: torch.Tensor) -> str:
        """Returns how what the readers of a weight get differs from it, in words.

        Args:
            unit: A unit in the graph before that its readers take as floats.
            matrix: What its codes stand for, rows x columns.
        """
        typed = matrix.numpy().astype(unit.tensor.dtype.numpy()).astype(np.float32)
        matrix = torch.from_numpy(typed)  # readers see it in the type of the weight
        for usage in unit.weight.uses():
            weight = self._read_now(usage.node, usage.idx)
            if weight is None or weight not in self._static[1]:
                return f"{_name(usage.node.outputs[0])!r} is made without a constant weight"
            part = slice_of(weight, lambda one: one not in self._static[1])
            actual = self._segment(part, weight)()[0]
            columns = actual.movedim(unit.row_axis, -1).flatten(0, -2)
            name, rows = _name(weight), matrix.T
            # What makes a weight in few bits is run in float32, without its last rounding.
            tolerance = _LAST_ROUNDING.get(unit.tensor.dtype, _TOLERANCE)
            found = find_difference(name, rows, columns, tolerance, by_channel=True)
            if found is not None:
                return str(found)
        return ""

    def _read_now(self, node: ir.Node, index: int) -> ir.Value | None:
        """Returns what the node that stands for ``node`` in the graph after reads."""
        made = self._made.get(_name(node.outputs[0]))
        producer = made.producer() if made is not None else None
        return producer.inputs[index] if producer is not None else None


def _inputs(
    use: Use, given: Sequence[ir.Value], shape: torch.Size, generator: torch.Generator
) -> Iterator[Tensors]:
    """Yields values for ``given``: signs or rows for the activation, noise for a bias."""
    if not given:  # the activation is a constant
        yield ()
        return
    rows, columns = shape
    bias = torch.randn(rows, generator=generator)
    lookup = use.kind == "lookup"
    for activation in _rows(use, rows) if lookup else _signs(use, columns, generator):
        yield tuple(activation if value is use.activation else bias for value in given)


def _signs(use: Use, columns: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    signs = torch.randn(_PROBES, columns, generator=generator).sign()
    rank = use.product_rank or 2
    if rank == 1:
        yield from signs
    else:
        yield signs.reshape(*[1] * (rank - 2), _PROBES, columns)


def _rows(use: Use, rows: int) -> Iterator[torch.Tensor]:
    dtype = torch.int32 if use.activation.dtype == ir.DataType.INT32 else torch.int64
    every, rank = torch.arange(rows, dtype=dtype), _rank(use.activation, 1)
    if rank == 0:
        yield from every[:: max(1, rows // _SINGLE_ROWS)]
        return
    for part in torch.split(every, _ROWS_AT_ONCE):
        yield part.reshape(*[1] * (rank - 1), len(part))


def _run(module: torch.nn.Module, given: Sequence[torch.Tensor]) -> tuple[torch.Tensor, float]:
    """Runs a part in float32, or in float16 where a Cast inside allows nothing else."""
    try:
        return module(*given)[0], _TOLERANCE
    except RuntimeError:
        half = [one.half() if one.is_floating_point() else one for one in given]
        return module.half()(*half)[0], _HALF_TOLERANCE


def _laid_out(use: Use, matrix: torch.Tensor) -> torch.Tensor:
    """Returns the weight as the consumer reads it, behind all views."""
    straight = use.kind == "lookup" or use.node.attributes.get_int("transB", 0) != 0
    return matrix if straight else matrix.T


def _rank(value: ir.Value, unknown: int) -> int:
    return unknown if value.shape is None else len(value.shape)


def _name(value: ir.Value) -> str:
    return str(value.name)
