"""What `mpqc doctor` finds out about a capability table by running tiny models."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mpqc.backend.onnxruntime import probing
from mpqc.backend.onnxruntime.capabilities import load
from mpqc.backend.onnxruntime.probing import Probe, in_plain_words, probe
from mpqc.backend.onnxruntime.row_models import row_model
from mpqc.backend.onnxruntime.row_parts import RowModel
from mpqc.ir import Capabilities, Kernel
from mpqc.ir.target_rows import Row

pytestmark = pytest.mark.ort
CPU = load("ort-cpu")


@pytest.mark.parametrize("target", ["ort-cpu", "qdq"])
def test_this_machine_does_what_the_table_says(target: str) -> None:
    found = probe(load(target))
    assert [str(one) for one in found if one.verdict != "right"] == []
    kinds = {one.row.kind for one in found}
    assert kinds >= {"product", "lookup", "array"}
    assert kinds & {"integer product", "convolution"}


@pytest.mark.parametrize("form", ["gather-block-quantized", "dequantize", "expand"])
def test_lookups_of_other_targets_are_right_where_the_cpu_runs_them(form: str) -> None:
    table = replace(CPU, kernels=CPU.kernels[1:], lookup=form, lookup_bits=(4, 8))
    found = [one for one in probe(table) if one.row.kind == "lookup"]
    assert len(found) == 6
    assert [str(one) for one in found if one.verdict != "right"] == []


def planted(kernel: Kernel) -> list[Probe]:
    """What is found wrong in a table with one kernel."""
    table = replace(CPU, kernels=(kernel,), lookup_bits=(), array_bits=(), integer_bits=())
    return [one for one in probe(replace(table, expanding=())) if one.failed]


@pytest.mark.parametrize(
    ("kernel", "named", "reason"),
    [
        (
            Kernel(3, (64,), 1, 1, 4, 0.2),
            "product, 3 bits, groups of 64",
            "Only 2b, 4b and 8b",
        ),
        (Kernel(4, (24,), 1, 1, 4, 0.2), "product, 4 bits, groups of 24", "Only block sizes"),
    ],
)
def test_a_kernel_that_the_runtime_lacks_is_named(
    kernel: Kernel, named: str, reason: str
) -> None:
    (found,) = planted(kernel)
    assert (found.name, found.verdict) == (named, "refused")
    assert reason in found.detail
    assert "onnxruntime_src" not in found.detail


def test_only_the_wrong_group_of_a_kernel_is_named() -> None:
    found = planted(Kernel(4, (32, 48, 64), 1, 1, 4, 0.2))
    assert [one.group for one in found] == [48]


def shifted(made: RowModel) -> RowModel:
    """A reference whose zero lies elsewhere, as in a runtime with another default."""
    return replace(
        made, expected=tuple(one + 0.5 * np.abs(one).max() for one in made.expected)
    )


def test_a_row_that_computes_something_else_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def made(row: Row, group: int, table: Capabilities) -> RowModel:
        honest = row_model(row, group, table)
        return shifted(honest) if (row.kind, row.bits, group) == ("lookup", 4, 64) else honest

    monkeypatch.setattr(probing, "row_model", made)
    (found,) = [one for one in probe(CPU) if one.failed]
    assert str(found).startswith("lookup, 4 bits, groups of 64: wrong (a relative error of ")


def test_codes_that_are_not_expanded_at_load_are_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def made(row: Row, group: int, table: Capabilities) -> RowModel:
        return replace(row_model(row, group, table), folded=("Mul",))

    monkeypatch.setattr(probing, "row_model", made)
    found = probe(replace(CPU, kernels=(), lookup_bits=(), integer_bits=(), array_bits=()))
    assert {one.verdict for one in found} == {"wrong"}
    assert all("Mul stays in the graph" in one.detail for one in found)


def test_nan_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def made(row: Row, group: int, table: Capabilities) -> RowModel:
        honest = row_model(row, group, table)
        feeds = tuple({"x": one["x"] * np.float32(np.nan)} for one in honest.feeds)
        return replace(honest, feeds=feeds)

    monkeypatch.setattr(probing, "row_model", made)
    table = replace(CPU, lookup_bits=(), array_bits=(), integer_bits=(), expanding=())
    assert {one.verdict for one in probe(table)} == {"wrong"}


def test_rows_of_a_runtime_that_is_not_here_are_not_tried() -> None:
    found = probe(load("ort-cuda"), problem="there is no GPU")
    assert {(one.verdict, one.detail) for one in found} == {
        ("cannot be tried here", "there is no GPU")
    }
    assert not any(one.failed for one in found)


def test_products_are_timed_where_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "_SIZE", 128)
    monkeypatch.setattr(probing, "_SECONDS", 0.002)
    table = replace(CPU, kernels=CPU.kernels[:1])
    times = {one.row.kind: one.time for one in probe(table, timed=True)}
    assert (times["product"] or 0) > 0
    assert times["lookup"] is None


def test_only_an_offered_kernel_is_called_slow() -> None:
    row = Row("product", 4, (32,), True, 0.2, "", None)
    assert Probe(row, 32, "right", time=1.5).slow
    assert not Probe(row, 32, "right", time=0.5).slow
    assert not Probe(replace(row, offered=False), 32, "right", time=1.5).slow


def test_messages_of_the_runtime_lose_what_only_its_authors_read() -> None:
    raw = (
        "ONNX Runtime cannot load the model: [ONNXRuntimeError] : 1 : FAIL : Exception during"
        " initialization: /onnxruntime_src/a.cc:144 f() bits == 2 was false. Only 2b is there."
    )
    assert in_plain_words(raw) == "Only 2b is there"
    assert (
        in_plain_words("x: [ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : no kernel")
        == "no kernel"
    )
