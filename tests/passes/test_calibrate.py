"""What the sweeps gather, against torch's own autograd and against closed forms."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mpqc.ir import (
    Calibrated,
    Calibration,
    LeftInFloat,
    TensorStats,
    UsageError,
    find_units,
    need_note,
    note_of,
)
from mpqc.ir.analysis.blocks import blocks_of
from mpqc.passes.calibrate.sweep import Sweep
from mpqc.passes.engine.execution.padding import Padding
from mpqc.passes.engine.statistics.objective import choose_objective

from .rounded import parse
from .swept import (
    CALIBRATE,
    INNER,
    VOCABULARY,
    WIDTH,
    calibrated,
    context,
    language,
    language_weights,
    run,
    sentences,
    vector,
    vectors,
)
from .swept import (
    moment_tensors as moments,
)

pytestmark = pytest.mark.usefixtures("one_thread")
UNSEEN = 0.1
CLIP = (0.05, 4.0)


def by_autograd(samples: Calibration, seed: int) -> dict[str, torch.Tensor]:
    """The same expectations from the whole model at once, all in one graph."""
    w = {name: torch.from_numpy(array) for name, array in language_weights().items()}
    objective = choose_objective(language(), "ids", "auto")
    total: dict[str, Any] = {}
    counts: dict[str, int] = {}
    places = 0

    def add(name: str, array: torch.Tensor, count: int = 0) -> None:
        total[name] = total.get(name, 0) + array * (count or 1)
        counts[name] = counts.get(name, 0) + count

    for at, feed in enumerate(samples.training):
        ids = torch.from_numpy(feed["ids"])[0]
        x = w["table"][ids].requires_grad_()
        a = x @ w["up"]
        b = a.relu()
        c = b @ w["down"]
        y = x + c
        d = y @ w["up2"]
        e = d.relu()
        f = e @ w["down2"]
        z = y + f
        logits = z @ w["head"]
        generator = torch.Generator().manual_seed(seed * 1_000_003 + at)
        ends = objective.gradient(logits.detach()[None], Padding(), generator)[0][0]
        outputs = {"up": (x, a), "down": (b, c), "up2": (y, d), "down2": (e, f)}
        taken = [x, *(out for _, out in outputs.values())]
        grads = torch.autograd.grad(logits, taken, ends)
        places += len(ids)
        for (name, (inputs, _)), grad in zip(outputs.items(), grads[1:], strict=True):
            norms = grad.square().sum(1)
            weight = (norms / norms.mean()).clamp(*CLIP)
            gram = (inputs * (weight / weight.sum())[:, None]).T @ inputs
            add(f"{name}/0/rows", grad.square().sum(0).detach())
            add(f"{name}/0/hessian", gram.detach(), len(ids))
            add(f"{name}/0/coupling", grad.T @ grad)
        p = logits.detach().softmax(1)
        spread = p * (1 - p)
        weight = (spread.sum(1) / spread.sum(1).mean()).clamp(*CLIP)
        gram = (z * (weight / weight.sum())[:, None]).T @ z
        smooth = (1 - UNSEEN) * spread.sum(0) + UNSEEN * spread.sum(0).mean()
        add("head/0/rows", smooth)
        add("head/0/hessian", gram.detach(), len(ids))
        add("table/0/hessian", grads[0].T @ grads[0] / len(ids), len(ids))
    found = {name: array / (counts[name] or places) for name, array in total.items()}
    assert found["up/0/rows"].shape == (INNER,)
    assert found["up/0/hessian"].shape == (WIDTH, WIDTH)
    return found


@pytest.mark.parametrize("seed", [0, 3])
def test_moments_are_those_of_autograd(seed: int, tmp_path: Path) -> None:
    samples = sentences()
    work = calibrated(tmp_path, language(), samples, seed=seed, coupled="true")
    found, wanted = moments(work), by_autograd(samples, seed)
    assert work.report["calibrate"]["sweep"] == "torch"
    for name, array in wanted.items():
        torch.testing.assert_close(found[name], array, rtol=1e-3, atol=1e-7, msg=name)


def test_lookup_rows_are_frequencies_with_a_prior(tmp_path: Path) -> None:
    samples = sentences()
    rows = moments(calibrated(tmp_path, language(), samples))["table/0/rows"]
    assert float(rows.sum()) == pytest.approx(1, rel=1e-4)
    assert bool((rows > 0).all()), "a token that was not seen is not free"
    seen = np.concatenate([feed["ids"].ravel() for feed in samples.training])
    counts = np.bincount(seen, minlength=VOCABULARY)
    assert rows[int(counts.argmax())] > 3 * rows[VOCABULARY // 2 :].mean()


def test_sampled_fisher_is_the_closed_form_in_expectation(tmp_path: Path) -> None:
    """With a bias the output is no product, so labels are drawn: E[g^2] = E[p (1 - p)]."""
    samples = vectors(count=30, length=400)
    text = """<ir_version: 8, opset_import: ["" : 17]>
        g (float[n, 64] x) => (float[n, 80] y)
        { a = MatMul(x, w)
          y = Add(a, bias) }"""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((64, 80)).astype(np.float32) / 16
    bias = rng.standard_normal(80).astype(np.float32)
    work = calibrated(
        tmp_path, parse(text, {"w": weight, "bias": bias}), samples, objective="logits"
    )
    x = torch.from_numpy(np.concatenate([feed["x"] for feed in samples.training]))
    p = (x @ torch.from_numpy(weight) + torch.from_numpy(bias)).softmax(1)
    wanted = (p * (1 - p)).mean(0)
    found = moments(work)["w/0/rows"]
    assert float(found.sum()) == pytest.approx(float(wanted.sum()), rel=0.01)
    assert float((found / wanted - 1).abs().mean()) < 0.15


def test_regression_predicts_half_the_relative_squared_error(tmp_path: Path) -> None:
    samples = vectors(count=8, length=200)
    text = """<ir_version: 8, opset_import: ["" : 17]>
        g (float[n, 64] x) => (float[n, 80] y) { y = MatMul(x, w) }"""
    weight = np.random.default_rng(0).standard_normal((64, 80)).astype(np.float32)
    work = calibrated(tmp_path, parse(text, {"w": weight}), samples, objective="regression")
    found = moments(work)
    error = torch.randn(64, 80, generator=torch.Generator().manual_seed(1)) / 50
    x = torch.from_numpy(np.concatenate([feed["x"] for feed in samples.training]))
    y = x @ torch.from_numpy(weight)
    wanted = 0.5 * float((x @ error).square().sum() / y.square().sum())
    quadratic = torch.einsum("kn,kj,jn->n", error, found["w/0/hessian"], error)
    predicted = 0.5 * float((found["w/0/rows"] * quadratic).sum())
    assert predicted == pytest.approx(wanted, rel=0.1)


def test_notes_say_what_was_seen(tmp_path: Path) -> None:
    model, samples = language(), sentences()
    calibrated(tmp_path, model, samples)
    note = need_note(model, Calibrated)
    assert (note.samples, note.tokens) == (4, 4 * 24)  # two are held out
    assert (note.objective, note.output, note.random) == ("logits", "logits", False)
    for unit in find_units(model):
        assert need_note(unit.notes, TensorStats).terms == len(unit.uses)


class Sweeps:
    """Counts the sweeps that really run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        module: Any = importlib.import_module("mpqc.passes.calibrate.calibrate")
        self.count = 0
        inner = module.Sweep.run

        def counted(*given: Any) -> None:
            self.count += 1
            inner(*given)

        monkeypatch.setattr(module.Sweep, "run", counted)


def test_stats_are_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweeps, samples = Sweeps(monkeypatch), sentences()
    first = calibrated(tmp_path, language(), samples)
    again = calibrated(tmp_path, language(), samples)
    assert sweeps.count == 1
    assert [one.report["calibrate"]["reused"] for one in (first, again)] == [False, True]
    for name, array in moments(first).items():
        torch.testing.assert_close(moments(again)[name], array, rtol=0, atol=0)


def test_stats_of_a_version_that_saw_fewer_units_are_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = vectors()
    module = importlib.import_module("mpqc.passes.calibrate.calibrate")
    with monkeypatch.context() as older:
        older.setattr(module, "find_units", lambda model: find_units(model)[:1])
        run(CALIBRATE, vector(), context(tmp_path, samples))
    newer = context(tmp_path, samples)
    run(CALIBRATE, vector(), newer)
    assert newer.report["calibrate"]["reused"] is False


def test_what_couples_rows_is_gathered_when_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweeps, samples = Sweeps(monkeypatch), sentences()
    plain = moments(calibrated(tmp_path, language(), samples))
    assert not any(name.endswith("coupling") for name in plain)
    more = moments(calibrated(tmp_path, language(), samples, coupled="true"))
    assert sweeps.count == 2
    for name in ("up", "down", "up2", "down2"):
        torch.testing.assert_close(
            more[f"{name}/0/coupling"].diagonal(), more[f"{name}/0/rows"], rtol=1e-4, atol=0
        )
    assert "table/0/coupling" not in more
    calibrated(tmp_path, language(), samples)
    assert sweeps.count == 2, "the larger file serves those who need less"


def test_stats_belong_to_model_samples_seed_and_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweeps = Sweeps(monkeypatch)
    calibrated(tmp_path, language(), sentences())
    calibrated(tmp_path, language(), sentences(seed=1))
    calibrated(tmp_path, language(), sentences(), seed=1)
    calibrated(tmp_path, language(), sentences(), objective="regression")
    other = language_weights()
    other["up"] = other["up"] * 1.5
    model = language()
    units = {unit.name: unit for unit in find_units(model)}
    units["up"].replace(other["up"].T)
    calibrated(tmp_path, model, sentences())
    assert sweeps.count == 5
    files = len(blocks_of(model)) + 1  # and an index
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 5 * files


def zeroed(content: bytes) -> bytes:
    header = 8 + int.from_bytes(content[:8], "little")
    return content[:header] + bytes(len(content) - header)


def flipped(content: bytes) -> bytes:
    return content[:-500] + bytes([content[-500] ^ 1]) + content[-499:]


DAMAGES: list[Callable[[bytes], bytes]] = [
    lambda content: b"",
    lambda content: content[:100],
    lambda content: content[:-100],
    zeroed,
    flipped,
]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("which", [0, 2, -1])
def test_a_broken_stats_file_is_made_again(
    which: int,
    damage: Callable[[bytes], bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sweeps, samples = Sweeps(monkeypatch), sentences()
    good = moments(calibrated(tmp_path, language(), samples))
    assert good["up/0/tokens"].shape == (sum(len(one["ids"][0]) for one in samples.training),)
    files = (tmp_path / "cache").glob("*.safetensors")
    file = sorted(files, key=lambda one: one.stat().st_mtime_ns)[which]
    file.write_bytes(damage(file.read_bytes()))
    work = calibrated(tmp_path, language(), samples)
    assert sweeps.count == 2
    for name, array in moments(work).items():
        torch.testing.assert_close(array, good[name], rtol=0, atol=0)


def test_an_interrupted_sweep_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*given: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Sweep, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        calibrated(tmp_path, language(), sentences())
    assert list((tmp_path / "cache").iterdir()) == []


def test_what_torch_cannot_run_is_measured_in_the_runtime(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "mpqc.backend.runner.Runner.unsupported",
        lambda self, nodes: {next(iter(nodes)): "Odd has no lowering"},
    )
    work = calibrated(tmp_path, vector(), vectors())
    assert work.report["calibrate"]["sweep"] == "runtime (Odd has no lowering)"
    found = moments(work)
    assert bool((found["first/0/rows"] > 0).all())
    assert bool(torch.isfinite(found["second/0/hessian"]).all())


def test_float_units_are_named_with_the_reason(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
        g (float[n, 64] x) => (float[n, 64] y, float[64, 64] t)
        { t = Transpose(w)
          a = MatMul(x, w)
          y = MatMul(a, v) }"""
    rng = np.random.default_rng(0)
    model = parse(
        text,
        {name: rng.standard_normal((64, 64)).astype(np.float32) for name in ("w", "v")},
    )
    rng_feeds = [{"x": rng.standard_normal((64, 64)).astype(np.float32)} for _ in range(3)]
    calibrated(tmp_path, model, Calibration(rng_feeds, "noise", "key"))
    units = {unit.name: unit for unit in find_units(model)}
    note = need_note(units["w"].notes, LeftInFloat)
    assert note.why == "the weight is an output of the model"
    assert note_of(units["v"].notes, TensorStats) is not None


def test_no_samples_and_unknown_objectives_are_refused(tmp_path: Path) -> None:
    work = context(tmp_path, sentences())
    work.calibration = None
    with pytest.raises(UsageError, match="needs samples"):
        run(CALIBRATE, language(), work)
    with pytest.raises(UsageError, match="objective"):
        calibrated(tmp_path, language(), sentences(), objective="logit")
