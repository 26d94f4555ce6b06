"""What the sweeps do where gradients are missing, indirect, or shared among positions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from mpqc.ir import Calibration, Feeds, InputError, find_units
from mpqc.passes.engine.execution.boundaries import DiskTensors
from mpqc.passes.engine.pipeline.base import PassContext
from mpqc.passes.engine.statistics.moments import unseen_share
from mpqc.passes.engine.statistics.objective import choose_objective
from mpqc.passes.engine.statistics.squares import read_square

from .rounded import noise, parse
from .swept import (
    CALIBRATE,
    VECTOR,
    context,
    language,
    moments,
    run,
    sentences,
    vector,
    vector_weights,
    vectors,
)

pytestmark = [pytest.mark.ort, pytest.mark.usefixtures("one_thread")]

ZERO = np.array(0, np.float32)


def images(count: int, size: int = 6) -> Calibration:
    rng = np.random.default_rng(0)
    feeds: list[Feeds] = [
        {"x": rng.standard_normal((2, 8, size, size)).astype(np.float32)} for _ in range(count)
    ]
    return Calibration(feeds, "noise", f"images-{count}-{size}", held_out=0)


def convolution(tail: str = "y = ReduceMean <axes = [2, 3], keepdims = 0> (c)") -> ir.Model:
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
        g (float[n, 8, h, w] x) => (float[n, 64] y) {{ c = Conv(x, kernel) {tail} }}"""
    return parse(text, {"kernel": noise(64, 8, 3, 3) / 8, "zero": ZERO})


def rows(work: PassContext, unit: str) -> torch.Tensor:
    return torch.from_numpy(np.array(work.arrays.get(f"{unit}/0/rows")))


def test_a_convolution_gets_the_diagonal_fisher(tmp_path: Path) -> None:
    """Positions share a gradient here, so that summing squares over them would be wrong."""
    work = context(tmp_path, images(100))
    model = run(CALIBRATE, convolution(), work)
    found = rows(work, "kernel")
    assert work.calibration is not None
    kernel = torch.from_numpy(find_units(model)[0].tensor.numpy().copy())
    exact = torch.zeros(64)
    for feed in work.calibration.training:
        seen = torch.from_numpy(feed["x"])
        scale = torch.nn.functional.conv2d(seen, kernel).mean((2, 3)).square().mean() * 64
        # dl/dw[n, k] = sum_b r[b, n] / sqrt(scale) * mean_p x[b, k, p], squared and averaged
        patches = torch.nn.functional.unfold(seen, 3).mean(2)
        exact += patches.square().sum(0).mean() / scale
    exact /= 2 * len(work.calibration.training)
    assert float(found.mean() / exact.mean()) == pytest.approx(1, rel=0.1)


def test_a_unit_that_no_gradient_reaches_is_judged_by_its_own_output(tmp_path: Path) -> None:
    model = parse(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[n, 64] x) => (int64[n, 1] best, float[n, 80] y)
        { a = MatMul(x, unseen)
          best = ArgMax <axis = 1> (a)
          y = MatMul(x, seen) }""",
        {"unseen": noise(64, 96), "seen": noise(64, 80)},
    )
    rng = np.random.default_rng(0)
    feeds: list[Feeds] = [{"x": rng.standard_normal((30, 64)).astype(np.float32)}]
    work = context(tmp_path, Calibration(feeds, "noise", "vectors"))
    run(CALIBRATE, model, work)
    weight = torch.from_numpy(noise(64, 96))
    made = torch.from_numpy(feeds[0]["x"]) @ weight
    assert torch.allclose(rows(work, "unseen"), 1 / (96 * made.square().mean()), rtol=1e-4)
    hessian = torch.from_numpy(read_square(work.arrays, "unseen/0/hessian"))
    inputs = torch.from_numpy(feeds[0]["x"])
    assert torch.allclose(hessian, inputs.T @ inputs / 30, rtol=1e-3, atol=1e-3)


GEMM = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[n, 64] x) => (float[n, 80] y)
    { a = Gemm <alpha = ALPHA> (x, first) b = Tanh(a) y = Gemm (b, second) }"""


def test_what_a_gemm_multiplies_by_counts(tmp_path: Path) -> None:
    """Errors of the weights reach the output ``alpha`` times."""
    first, second = noise(64, 96, seed=1) / 8, noise(96, 80, seed=2) / 10

    def importance(alpha: float) -> torch.Tensor:
        weights = {"first": first / alpha, "second": second}
        work = context(tmp_path / str(alpha), vectors())
        run(CALIBRATE, parse(GEMM.replace("ALPHA", str(alpha)), weights), work)
        return rows(work, "first")

    torch.testing.assert_close(importance(0.125), importance(1.0) / 64, rtol=1e-3, atol=0.0)


def test_entries_that_are_ruled_out_are_no_size(tmp_path: Path) -> None:
    plain = context(tmp_path / "plain", vectors())
    run(CALIBRATE, vector(), plain)
    bias = noise(80, seed=3)
    bias[5], bias[7] = -np.inf, np.finfo(np.float32).min
    work = context(tmp_path / "masked", vectors())
    run(CALIBRATE, parse(VECTOR, {**vector_weights(), "bias": bias}), work)
    ratio = rows(work, "first") / rows(plain, "first")
    assert bool(((ratio > 0.5) & (ratio < 2)).all())


def test_samples_that_overflow_are_refused_by_name(tmp_path: Path) -> None:
    samples = vectors()
    samples.feeds[0]["x"][0, 0] = 1e20
    with pytest.raises(InputError, match=r"'first'.* multiplies on these samples"):
        run(CALIBRATE, vector(), context(tmp_path, samples))


def test_convolutions_are_measured_where_torch_cannot_run(tmp_path: Path) -> None:
    tail = """t = ReduceMean <axes = [2, 3], keepdims = 0> (c)
        s = ReduceSum <keepdims = 0> (t)
        b = Greater(s, zero)
        y = If (b) <then_branch = a () => (float[n, 64] p) { p = Relu(t) },
                    else_branch = d () => (float[n, 64] q) { q = Neg(t) }>"""
    model = convolution(tail)
    work = context(tmp_path, images(4))
    run(CALIBRATE, model, work)
    assert work.report["calibrate"]["sweep"].startswith("runtime")
    assert bool((rows(work, "kernel") > 0).all())


@pytest.mark.parametrize(
    "way",
    [
        "x = Gather(table, ids)",
        "i = Cast <to = 7> (ids) x = Gather(table, i)",
        "s = Shape(ids) i = Reshape(ids, s) j = Cast <to = 6> (i) x = Gather(table, j)",
    ],
)
def test_logits_are_known_however_the_ids_reach_the_table(way: str) -> None:
    model = parse(
        f"""<ir_version: 8, opset_import: ["" : 17]>
        g (int64[n, m] ids) => (float[n, m, 80] y) {{ {way} y = MatMul(x, head) }}""",
        {"table": noise(80, 64), "head": noise(64, 80)},
    )
    assert choose_objective(model, "ids", "auto").kind == "logits"
    assert choose_objective(model, None, "auto").kind == "regression"


def test_the_share_of_unseen_rows_is_that_of_rows_seen_once() -> None:
    assert unseen_share(torch.tensor([0.0, 1, 1, 6])) == pytest.approx(0.25)
    assert unseen_share(torch.zeros(3)) == 0


def test_bfloat16_crosses_the_boundaries_of_blocks(tmp_path: Path) -> None:
    tensors, values = DiskTensors(tmp_path / "boundary"), torch.linspace(-3, 3, 7).bfloat16()
    tensors["a"] = values
    tensors["a"] = tensors["a"] + values
    tensors["b"] = values.float()
    for name, wanted in (("a", 2 * values), ("b", values.float())):
        assert tensors[name].dtype == wanted.dtype
        assert torch.equal(tensors[name], wanted)
    del tensors["a"]
    assert list(tensors) == ["b"]
    tensors.clear()
    assert list((tmp_path / "boundary").iterdir()) == []


def padded(samples: Calibration, length: int) -> Calibration:
    """Returns the same sentences, made longer by a token that nobody asked for."""
    feeds: list[Feeds] = []
    for feed in samples.feeds:
        ids = np.full((1, length), 77)
        ids[:, : feed["ids"].shape[1]] = feed["ids"]
        mask = (np.arange(length) < feed["ids"].shape[1])[None].astype(np.int64)
        feeds.append({"ids": ids, "mask": mask})
    return Calibration(feeds, "noise", f"padded-{length}", "ids", mask="mask")


def test_padding_does_not_count(tmp_path: Path) -> None:
    """Tokens do not see each other here, so that all moments must be those without padding."""
    found = []
    for at, samples in enumerate((sentences(), padded(sentences(), 40))):
        work = context(tmp_path / str(at), samples)
        run(f"{CALIBRATE}{{coupled=true}}", language(), work)
        found.append(
            {n: array for n, array in moments(work).items() if not n.endswith("/tokens")}
        )
    plain, masked = found
    assert plain.keys() == masked.keys()
    for name in ("table/0/rows", "head/0/rows", "head/0/hessian", "up/0/low"):
        np.testing.assert_allclose(masked[name], plain[name], rtol=1e-4, atol=1e-7)
    for name in ("up/0/rows", "down2/0/hessian", "up/0/coupling"):  # other labels are drawn
        ratio = np.trace(np.atleast_2d(masked[name])) / np.trace(np.atleast_2d(plain[name]))
        assert 0.5 < ratio < 2


def test_a_sample_of_nothing_but_padding_keeps_the_others_in_place(tmp_path: Path) -> None:
    samples = padded(sentences(), 30)
    samples.feeds[1]["mask"][:] = 0
    work = context(tmp_path, samples)
    allocate = f"{CALIBRATE},annotate-sensitivity,allocate-bits{{budget=4}}"
    model = run(f"{allocate},quantize-weights{{sequential=block}}", language(), work)
    assert all(np.isfinite(unit.matrix()).all() for unit in find_units(model))
    tokens = np.array(work.arrays.get("up/0/tokens"))
    assert len(tokens) == 24 * (len(samples.training) - 1)
    assert tokens.all()


def test_a_row_of_zeros_does_not_speak_for_the_others(tmp_path: Path) -> None:
    """A norm gives padding's row of zeros a gradient a thousand times that of any word."""
    text = """<ir_version: 8, opset_import: ["" : 17]>
        g (int64[n, s] input_ids) => (float[n, s, 64] y) {
            found = Gather (table, input_ids)
            normal = LayerNormalization <epsilon = 1e-6> (found, gain)
            y = MatMul (normal, head)
        }"""
    table = noise(96, 64)
    ids = np.random.default_rng(0).integers(1, 96, (12, 1, 16))
    grams = []
    for name, first in [("with", 0), ("without", 1)]:
        table[0], ids[:, :, 0] = 0, first
        weights = {"table": table, "gain": np.ones(64, np.float32), "head": noise(64, 64)}
        feeds: list[Feeds] = [{"input_ids": one} for one in ids]
        calibration = Calibration(feeds, "noise", name, "input_ids", held_out=0)
        (tmp_path / name).mkdir()
        work = context(tmp_path / name, calibration)
        run(CALIBRATE, parse(text, weights), work)
        grams.append(np.trace(read_square(work.arrays, "table/0/hessian")))
    assert grams[0] < 1.1 * grams[1]
