from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mpqc.backend.onnxruntime import capabilities, open_session
from mpqc.backend.onnxruntime.capabilities import installed_runtime_problem, load, targets
from mpqc.ir import Evidence, Option, UsageError
from mpqc.ir.target_rows import rows_of

from ..passes.rounded import parse


def test_every_target_loads() -> None:
    assert targets() == ("ort-cpu", "ort-cuda", "qdq", "tensorrt")
    for target in targets():
        table = load(target)
        standard = target in ("qdq", "tensorrt")  # INT2 is no type that runtimes take
        assert [kernel.bits for kernel in table.kernels] == ([4, 8] if standard else [2, 4, 8])
        assert set(table.lookup_bits) <= {kernel.bits for kernel in table.kernels}


def test_slow_kernels_are_not_offered() -> None:
    offered = set(load("ort-cpu").product_options(96, 100))
    assert Option(2, 64) in offered
    assert Option(2, 32) not in offered
    assert Option(2, 256) not in offered
    assert load("ort-cuda").product_options(96, 100) == ()


def test_unknown_target() -> None:
    with pytest.raises(UsageError) as caught:
        load("ort-cup")
    assert caught.value.hint == "did you mean 'ort-cpu'?"


def installed(**versions: str) -> Callable[[str], str]:
    known = {name.replace("_", "-"): version for name, version in versions.items()}
    return lambda wheel: known.get(wheel, "")


@pytest.mark.parametrize(
    ("versions", "problem"),
    [
        ({}, "not installed"),
        ({"onnxruntime": "1.31.1", "onnxruntime_gpu": "1.31.1"}, "uninstall one"),
        ({"onnxruntime": "1.30.2"}, "1.30.2 is too old for ort-cpu, which needs 1.31"),
    ],
)
def test_runtime_that_cannot_serve(
    versions: dict[str, str], problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capabilities, "_version", installed(**versions))
    assert problem in (installed_runtime_problem("ort-cpu") or "")


@pytest.mark.ort
def test_this_machine_runs_the_cpu_target() -> None:
    assert installed_runtime_problem("ort-cpu") is None


@pytest.mark.ort
def test_missing_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["AnotherProvider"])
    assert "no CPUExecutionProvider" in (installed_runtime_problem("ort-cpu") or "")


def offered() -> list[tuple[int, int]]:
    return [
        (kernel.bits, group) for kernel in load("ort-cpu").kernels for group in kernel.groups
    ]


@pytest.mark.ort
@pytest.mark.parametrize(("bits", "group"), offered())
def test_kernels_round_activations_in_the_groups_of_their_weights(
    bits: int, group: int
) -> None:
    """What the capability table and the docs say about them."""
    rng = np.random.default_rng(bits * group)
    codes = rng.integers(0, 1 << bits, (64, 512 // group, group), np.uint8)
    scales = rng.uniform(0.05, 0.15, codes.shape[:2]).astype(np.float32)
    fields = codes.reshape(64, 512 // group, -1, 8 // bits) << np.arange(
        0, 8, bits, dtype=np.uint8
    )
    text = f"""<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>
        g (float[n, 512] x) => (float[n, 64] y)
        {{ y = com.microsoft.MatMulNBits <K=512, N=64, bits={bits}, block_size={group},
                                          accuracy_level=4> (x, codes, scales) }}"""
    model = parse(text, {"codes": fields.sum(axis=-1, dtype=np.uint8), "scales": scales})
    x = rng.standard_normal((8, 512)).astype(np.float32) * rng.lognormal(0, 1, 512)
    with open_session(model, "CPUExecutionProvider", threads=1) as session:
        found = session.run({"x": x.astype(np.float32)})["y"]
    groups = x.reshape(8, -1, group)
    steps = np.abs(groups).max(axis=2, keepdims=True) / 127
    rounded = (np.round(groups / steps) * steps).reshape(8, 512)
    weight = ((codes - float(1 << (bits - 1))) * scales[..., None]).reshape(64, 512)
    off = np.linalg.norm(found - rounded @ weight.T) / np.linalg.norm(found - x @ weight.T)
    assert off < 0.1  # entries halfway between two steps may go either way


@pytest.mark.parametrize("target", targets())
def test_every_row_says_how_it_is_known(target: str) -> None:
    rows = rows_of(load(target))
    assert {row.kind for row in rows} >= {"product", "lookup", "array"}
    assert all(row.evidence is not None for row in rows)


def without(target: str, name: str) -> dict[str, Any]:
    """The tables, of which one entry has lost its evidence."""
    tables = copy.deepcopy(capabilities._tables())
    place = tables[target]["kernels"][0] if name == "kernel" else tables[target]["evidence"]
    del place["evidence" if name == "kernel" else name]
    return tables


@pytest.mark.parametrize(
    ("target", "name", "named"),
    [
        ("ort-cpu", "kernel", "ort-cpu, 2 bits: no evidence"),
        ("ort-cuda", "lookup", "ort-cuda, lookup_bits: no evidence"),
        ("qdq", "convolution", "qdq, convolution_bits: no evidence"),
        ("ort-cpu", "expanding", "ort-cpu, expanding: no evidence"),
    ],
)
def test_a_row_without_evidence_is_refused(
    target: str, name: str, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = without(target, name)
    monkeypatch.setattr(capabilities, "_tables", lambda: tables)
    with pytest.raises(ValueError, match=named):
        load(target)


@pytest.mark.parametrize(
    "given",
    [{}, {"when": "2026-11"}, {"on": "here"}, {"on": "a", "source": "b", "when": "2026-11"}],
)
def test_evidence_is_a_machine_or_a_source_and_a_date(given: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="evidence"):
        Evidence(**given)


def test_rows_tell_slow_groups_from_quick_ones() -> None:
    rows = {(row.bits, row.groups): row for row in rows_of(load("ort-cpu"))}
    quick, slow = rows[2, (64,)], rows[2, (256,)]
    assert quick.fast
    assert quick.offered
    assert not slow.fast
    assert not slow.offered
    assert slow.time == 12.9
