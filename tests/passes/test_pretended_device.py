"""Every engine on a pretended accelerator: no mix of devices, and the same numbers.

What is computed there is computed on the CPU underneath, so that results differ by no more
than the order of sums in the forms for accelerators.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from mpqc.ir import Calibration, InternalError, quantizable, write_model
from mpqc.passes.calibrate import gathering
from mpqc.passes.engine.numerics import doubles
from mpqc.passes.engine.numerics.factor import factorize
from mpqc.passes.engine.numerics.gptq import gptq, round_rows
from mpqc.passes.engine.pipeline.base import PassContext
from mpqc.passes.engine.pipeline.work import Kind
from mpqc.passes.engine.statistics.moments import normalized
from mpqc.passes.engine.validation.lockstep import Lockstep
from mpqc.tools.planning import rates

from ..pretended import DEVICE, PretendedDevice, pretending, put
from . import attending, swept
from .outliers import outlier_model
from .swept import CALIBRATE, context, run, sentences, vector, vectors
from .test_outlier_columns import ANNOTATE, calibrated
from .test_padding import masked, padded

pytestmark = pytest.mark.usefixtures("one_thread")

Arrays = Mapping[str, np.ndarray]
JUDGED = "annotate-sensitivity{metric=weight-error},allocate-bits{budget=3.5}"
ALLOCATED = f"{CALIBRATE},{JUDGED}"
COUPLED = "calibrate{coupled=true}"
IN_SEQUENCE = "quantize-weights{sequential=block, samples=2, refinements=1}"
_SAME_CODES = 0.999  # share of them; the others are halfway between two codes
_CLOSE = 1e-4


def prepared(folder: Path, model: ir.Model, samples: Calibration, device: str) -> PassContext:
    folder.mkdir(parents=True)
    write_model(model, folder / "original.onnx")
    work = context(folder, replace(samples, held_out=2))
    work.original, work.device = folder / "original.onnx", device
    return work


def arrays_after(
    passes: str, make: Callable[[], ir.Model], samples: Calibration, folder: Path, device: str
) -> tuple[Arrays, PretendedDevice | None]:
    """Runs passes on a device; returns all arrays and weights that they leave."""
    work, model = prepared(folder, make(), samples, device), make()
    with pretending() if device == DEVICE else nullcontext() as pretended:
        run(passes, model, work)
    found = {name: work.arrays.get(name) for name in work.arrays.names()}
    found |= {f"weight {unit.name}": unit.matrix().copy() for unit in quantizable(model)}
    return found, pretended


def assert_same(one: Arrays, other: Arrays) -> None:
    assert one.keys() == other.keys()
    for name, expected in one.items():
        actual = other[name]
        assert actual.dtype == expected.dtype, name
        if expected.dtype.kind in "iu":
            assert (actual == expected).mean() >= _SAME_CODES, name
        else:
            size = float(np.abs(expected.astype(np.float64)).max(initial=1e-30))
            errors = np.abs(actual.astype(np.float64) - expected)
            assert (errors <= _CLOSE * size).mean() >= _SAME_CODES, name


LANGUAGE = {
    "moments of a language model": f"{CALIBRATE}",
    "couplings": f"normalize,partition-blocks,{COUPLED}",
    "kept channels": f"{CALIBRATE},annotate-sensitivity{{metric=fisher, keep=[2, 4]}}",
    "kl": f"{CALIBRATE},annotate-sensitivity{{metric=kl, samples=1, units=2}}",
    "trace": f"{CALIBRATE},annotate-sensitivity{{metric=trace}}",
    "activation norm": f"{CALIBRATE},annotate-sensitivity{{metric=activation-norm}}",
    "taylor": f"{CALIBRATE},annotate-sensitivity{{metric=taylor, samples=1}}",
    "taylor on text": (
        f"{CALIBRATE},annotate-sensitivity{{metric=taylor, samples=1, labels=text}}"
    ),
    "pruning": f"{CALIBRATE},annotate-sensitivity{{metric=pruning, samples=1}}",
    "cca": f"{CALIBRATE},annotate-sensitivity{{metric=cca, variant=pwcca, window=1}}",
    "rounding": f"{ALLOCATED},quantize-weights",
    "coupled rows": (
        f"normalize,partition-blocks,{COUPLED},{JUDGED},"
        "quantize-weights{coupled=true, refinements=1}"
    ),
    "block by block": f"{ALLOCATED},{IN_SEQUENCE}",
    "layer by layer": f"{ALLOCATED},{IN_SEQUENCE.replace('block', 'layer')}",
    "tuning": f"{ALLOCATED},quantize-weights{{refinements=0}},tune-scales{{samples=3}}",
}


_LONG = (pytest.mark.slow, pytest.mark.ci_sample)
_MARKS = dict.fromkeys(("kept channels", "block by block", "layer by layer"), _LONG)


@pytest.mark.parametrize(
    "name", [pytest.param(one, marks=_MARKS.get(one, ())) for one in LANGUAGE]
)
def test_a_language_model(name: str, tmp_path: Path) -> None:
    passes, samples = LANGUAGE[name], sentences(count=4, length=12)
    there, _ = arrays_after(passes, swept.language, samples, tmp_path / "cpu", "cpu")
    here, device = arrays_after(passes, swept.language, samples, tmp_path / "here", DEVICE)
    assert_same(there, here)
    assert device is not None
    assert device.calls["aten::mm"]
    assert not device.left, f"computed on the CPU: {dict(device.left)}"


def test_padding(tmp_path: Path) -> None:
    """Tokens are picked from values, gradients and divergences on the device."""
    passes = f"{ALLOCATED},quantize-weights{{rounding=nearest}},tune-scales{{samples=2}}"
    there, _ = arrays_after(passes, masked, padded(7), tmp_path / "cpu", "cpu")
    here, device = arrays_after(passes, masked, padded(7), tmp_path / "here", DEVICE)
    assert_same(there, here)
    assert device is not None
    assert not device.left


def test_floats_of_8_bits() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(24, 80, generator=generator)
    inputs = torch.randn(200, 80, generator=generator)
    there = round_rows(weight, 8, 80, factorize(inputs.T @ inputs, 0.1), float8=True)
    with pretending() as device:
        factor = factorize(put(inputs).T @ put(inputs), 0.1)
        here = round_rows(put(weight), 8, 80, factor, float8=True)
        assert torch.equal(here.codes.cpu(), there.codes)
        assert torch.equal(here.scales.cpu(), there.scales)
    assert not device.left


def test_rounding_reads_few_numbers_back() -> None:
    """Each number that is read waits for all that was begun."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(24, 300, generator=generator)
    inputs = torch.randn(400, 300, generator=generator)
    with pretending() as device:
        factor = factorize(put(inputs).T @ put(inputs), 0.1)
        device.reads = 0
        gptq(put(weight), 3, 32, factor, refinements=3)
    assert device.reads <= 3  # of solves, which look whether they worked


def test_a_regression(tmp_path: Path) -> None:
    passes = f"{ALLOCATED},quantize-weights{{refinements=0}},tune-scales{{samples=2}}"
    there, _ = arrays_after(passes, vector, vectors(), tmp_path / "cpu", "cpu")
    here, device = arrays_after(passes, vector, vectors(), tmp_path / "here", DEVICE)
    assert_same(there, here)
    assert device is not None
    assert not device.left


@pytest.mark.slow
@pytest.mark.ci_sample
def test_heads(tmp_path: Path) -> None:
    """Hessians of attention, and rounding against them, row by row of Hessians."""
    passes = (
        f"{CALIBRATE},attention-hessians{{probes=2}},{JUDGED},"
        "quantize-weights{sequential=block, refinements=1}"
    )
    samples = sentences(4, 12)
    there, _ = arrays_after(passes, attending.language, samples, tmp_path / "cpu", "cpu")
    here, device = arrays_after(passes, attending.language, samples, tmp_path / "here", DEVICE)
    assert_same(there, here)
    assert device is not None
    assert not device.left


@pytest.mark.parametrize(
    "passes",
    [
        "rewrite-crossquant{alpha=search, bits=4}",
        "rewrite-crossquant{mode=dynamic, alpha=1}",
        "rewrite-crossquant{alpha=search, beta=search}",
    ],
)
def test_column_scales(passes: str, tmp_path: Path) -> None:
    passes, samples = f"{CALIBRATE},{passes}", sentences(2, 12)
    there, _ = arrays_after(passes, outlier_model, samples, tmp_path / "cpu", "cpu")
    here, device = arrays_after(passes, outlier_model, samples, tmp_path / "here", DEVICE)
    assert_same(there, here)
    assert device is not None
    assert device.calls["aten::mm"] > 2 * device.left["aten::mm"]  # the report counts kernels


def test_without_float64_factorizations_move_to_the_cpu(tmp_path: Path) -> None:
    """As on Apple's devices."""
    passes = f"{ALLOCATED},quantize-weights{{refinements=0}},tune-scales{{samples=2}}"
    work = prepared(tmp_path / "work", swept.language(), sentences(6, 12), DEVICE)
    with pytest.MonkeyPatch.context() as patch, pretending(doubles=False):
        patch.setattr(doubles, "_WITHOUT", (DEVICE,))
        run(passes, swept.language(), work)
    assert work.report["tune-scales"]["samples"] == 2


def test_validation_compares_on_the_device(tmp_path: Path) -> None:
    work = prepared(tmp_path / "work", swept.language(), sentences(2, 12), DEVICE)
    model = run("normalize,partition-blocks", swept.language(), work)
    assert work.calibration is not None
    with pretending() as device:
        changed = model.clone()
        lockstep = Lockstep(model, changed, work.runner, device=DEVICE)
        assert lockstep.mismatch(work.calibration.feeds[0]) is None
    assert device.calls["aten::mm"]
    assert not device.left


def test_a_tensor_made_on_the_cpu_in_an_engine_is_noticed(tmp_path: Path) -> None:
    """What these tests are for."""
    work = prepared(tmp_path / "work", swept.language(), sentences(2, 12), DEVICE)

    def forgetful(weights: torch.Tensor) -> torch.Tensor:
        return normalized(weights) + torch.zeros(len(weights))

    with pytest.MonkeyPatch.context() as patch, pretending():
        patch.setattr(gathering, "normalized", forgetful)
        with pytest.raises(InternalError, match="mixes devices"):
            run(CALIBRATE, swept.language(), work)


def test_kept_channels_make_up_for_the_others(tmp_path: Path) -> None:
    found: list[Arrays] = []
    for device in ("cpu", DEVICE):
        model, work = calibrated(tmp_path / device)
        work.device = device
        with pretending() as pretended:
            run(f"{ANNOTATE},allocate-bits{{budget=4.5}},quantize-weights", model, work)
        assert bool(pretended.calls) == (device == DEVICE)
        assert not (pretended.left and device == DEVICE)
        found.append({name: np.array(work.arrays.get(name)) for name in work.arrays.names()})
    assert "first/outliers/kept" in found[0]
    assert_same(*found)


def test_planning_measures_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "_LEAST_SECONDS", 0.0)
    monkeypatch.setattr(rates, "_COLUMNS", 64)
    monkeypatch.setattr(rates, "_MANY_ROWS", 64)
    waited: list[str] = []
    monkeypatch.setattr(rates, "settle", waited.append)
    work = prepared(tmp_path / "work", swept.language(), sentences(4, 12), DEVICE)
    work.scratch.mkdir(exist_ok=True)
    model = run("normalize,partition-blocks", swept.language(), work)
    with pretending() as device:
        found = rates.measure(model, work)
    assert found[Kind.SWEEP] > 0
    assert waited.count(DEVICE) >= 8
    assert device.calls["aten::mm"]
    assert not device.left
