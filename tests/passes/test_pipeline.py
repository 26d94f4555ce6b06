"""Pipelines: order, failures, verification, instruments."""

from __future__ import annotations

import errno
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import onnx.parser
import onnx_ir as ir
import pytest

from mpqc.ir import (
    Annotation,
    BlockId,
    Capabilities,
    InternalError,
    MachineError,
    QuantSpec,
    Sensitivity,
    TensorStats,
    UsageError,
    annotate,
    note_of,
)
from mpqc.passes.engine.pipeline.base import Pass, PassContext, Runner
from mpqc.passes.engine.pipeline.instruments import PrintAfter, StopAfter, TimePasses
from mpqc.passes.engine.pipeline.pipeline import Pipeline
from mpqc.passes.normalize.normalize import Normalize
from mpqc.passes.partition_blocks import PartitionBlocks

GRAPH = """
<ir_version: 10, opset_import: ["" : 17]>
g (float[N, 4] x) => (float[N, 4] y) { a = Relu(x) b = Neg(a) y = Abs(b) }
"""


@pytest.fixture
def model() -> ir.Model:
    return ir.from_proto(onnx.parser.parse_model(GRAPH))


@pytest.fixture
def context(tmp_path: Path) -> PassContext:
    return PassContext(cast(Runner, None), cast(Capabilities, None), tmp_path)


@dataclass(frozen=True)
class Writes(Pass):
    """Writes #stats."""

    name: ClassVar[str] = "writes"
    writes: ClassVar[tuple[type[Annotation], ...]] = (TensorStats,)

    def run(self, model: ir.Model, context: PassContext) -> bool:
        annotate(model.graph[0], TensorStats("w", 1, 8))
        return True


@dataclass(frozen=True)
class Reads(Pass):
    """Reads #stats and drops it."""

    name: ClassVar[str] = "reads"
    reads: ClassVar[tuple[type[Annotation], ...]] = (TensorStats,)
    drops: ClassVar[tuple[type[Annotation], ...]] = (TensorStats,)

    def run(self, model: ir.Model, context: PassContext) -> bool:
        context.report["reads"] = True
        return False


@dataclass(frozen=True)
class Fails(Pass):
    """Does what it is told."""

    name: ClassVar[str] = "fails"
    act: Callable[[ir.Model], Any] = lambda model: None

    def run(self, model: ir.Model, context: PassContext) -> bool:
        self.act(model)
        return True

    def __str__(self) -> str:
        return self.name


def fail_with(error: Exception) -> Callable[[ir.Model], Any]:
    def act(model: ir.Model) -> None:
        raise error

    return act


def break_graph(model: ir.Model) -> None:
    model.graph[1].replace_input_with(0, ir.Value(name="nowhere"))


def test_parse_and_print() -> None:
    text = "normalize,partition-blocks,verify-numerics{samples=5}"
    assert str(Pipeline.parse(text)) == text


def test_reads_what_nobody_writes(model: ir.Model) -> None:
    with pytest.raises(UsageError) as caught:
        Pipeline.parse("normalize,allocate-bits{budget=3.5}").check(model)
    expected = (
        "allocate-bits reads #sensitivity, which no earlier pass writes; "
        "add annotate-sensitivity before it"
    )
    assert caught.value.message == expected


def test_reads_what_an_earlier_pass_writes_or_the_model_carries(model: ir.Model) -> None:
    Pipeline((Writes(), Reads())).check(model)
    annotate(model.graph[2], TensorStats("w", 1, 8))
    Pipeline((Reads(),)).check(model)


def test_reads_what_an_earlier_pass_drops(model: ir.Model) -> None:
    with pytest.raises(UsageError, match="reads #stats, that reads drops"):
        Pipeline((Writes(), Reads(), Reads())).check(model)


def test_refusal_comes_before_anything_runs(model: ir.Model, context: PassContext) -> None:
    with pytest.raises(UsageError):
        Pipeline((PartitionBlocks(), Reads())).run(model, context)
    assert note_of(model.graph[0], BlockId) is None


def test_runs_in_order_and_verifies(model: ir.Model, context: PassContext) -> None:
    assert Pipeline((Writes(), Reads())).run(model, context) == 2
    assert context.report == {"reads": True}


def test_starts_in_the_middle(model: ir.Model, context: PassContext) -> None:
    annotate(model.graph[0], TensorStats("w", 1, 8))
    assert (
        Pipeline((Fails(fail_with(ValueError())), Reads())).run(model, context, first=1) == 2
    )


def test_broken_graph_names_the_pass(model: ir.Model, context: PassContext) -> None:
    with pytest.raises(InternalError) as caught:
        Pipeline((Normalize(), Writes(), Fails(break_graph))).run(model, context)
    assert "pass fails left a broken graph (after normalize,writes)" in caught.value.message
    assert "nowhere" in caught.value.message


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ValueError("two\nlines"), InternalError),
        (MemoryError(), MachineError),
        (OSError(errno.ENOSPC, "full"), MachineError),
        (PermissionError(errno.EACCES, "no"), InternalError),
    ],
)
def test_other_exceptions(
    error: Exception, kind: type[Exception], model: ir.Model, context: PassContext
) -> None:
    with pytest.raises(kind) as caught:
        Pipeline((Writes(), Fails(fail_with(error)))).run(model, context)
    assert caught.value.__cause__ is error
    assert "pass fails" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_our_errors_pass_untouched(model: ir.Model, context: PassContext) -> None:
    error = UsageError("no", hint="yes")
    with pytest.raises(UsageError) as caught:
        Pipeline((Fails(fail_with(error)),)).run(model, context)
    assert caught.value is error


def test_stop_after(model: ir.Model, context: PassContext) -> None:
    pipeline = Pipeline((Normalize(), PartitionBlocks(), Fails(fail_with(ValueError()))))
    assert pipeline.run(model, context, [StopAfter("partition-blocks")]) == 2


@pytest.mark.parametrize(
    ("name", "message"),
    [("partition-block", "unknown pass"), ("verify-numerics", "is not in the pipeline")],
)
@pytest.mark.parametrize("instrument", [StopAfter, PrintAfter])
def test_unknown_names_are_refused_up_front(
    name: str, message: str, instrument: Any, model: ir.Model, context: PassContext
) -> None:
    with pytest.raises(UsageError, match=message):
        Pipeline((Normalize(), PartitionBlocks())).run(model, context, [instrument(name)])
    assert note_of(model.graph[0], BlockId) is None


def test_print_after(model: ir.Model, context: PassContext) -> None:
    stream = io.StringIO()
    Pipeline((Normalize(), PartitionBlocks())).run(model, context, [PrintAfter("all", stream)])
    assert "// 000 normalize" in stream.getvalue()
    assert "#block{index=0}" in stream.getvalue()


def test_time_passes(model: ir.Model, context: PassContext) -> None:
    timing = TimePasses()
    Pipeline((Normalize(), PartitionBlocks())).run(model, context, [timing])
    assert list(timing.seconds()) == ["normalize", "partition-blocks"]
    assert timing.timings[0].peak > 1 << 20
    assert timing.table().splitlines()[-1].startswith("total")


def test_notes_used_here_exist() -> None:
    assert {QuantSpec.key, Sensitivity.key} == {"quant", "sensitivity"}
