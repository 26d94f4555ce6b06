"""Scores of blocks: CCA, pruning and Taylor, against what they claim to be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from mpqc.ir import (
    Calibration,
    Feeds,
    Option,
    Score,
    Sensitivity,
    UsageError,
    find_units,
    need_note,
    quantizable,
)
from mpqc.ir.analysis.blocks import blocks_of
from mpqc.passes.annotate_sensitivity.pruning import pruned
from mpqc.passes.engine.execution.executor import BlockRunner, weight_of
from mpqc.passes.engine.execution.samples import Samples
from mpqc.passes.engine.pipeline.base import PassContext
from mpqc.passes.engine.pipeline.spec import parse_passes

from .rounded import noise, parse
from .swept import CALIBRATE, context, language, language_weights, run, sentences, vectors

pytestmark = pytest.mark.usefixtures("one_thread")
BLOCKS = ["metric=cca", "metric=pruning", "metric=taylor", "metric=taylor, form=perturbation"]


def scores(
    options: str, model: ir.Model, work: PassContext, *, calibrated: bool = False
) -> dict[str, float]:
    passes = f"annotate-sensitivity{{{options}}}"
    run(passes if calibrated else f"{CALIBRATE},{passes}", model, work)
    return {u.name: need_note(u.notes, Score).value for u in quantizable(model)}


@pytest.mark.parametrize("options", BLOCKS)
def test_a_block_has_one_score_and_its_rows_share_it(options: str, tmp_path: Path) -> None:
    model, work = language(), context(tmp_path, sentences(count=12))
    found = scores(options, model, work)
    assert found["up"] == found["down"]
    assert found["up2"] == found["down2"]
    assert found["table"] == found["head"] == found["up"]
    units = {unit.name: unit for unit in quantizable(model)}
    assert need_note(units["up2"].notes, Score).block == 2
    assert need_note(units["head"].notes, Score).block == 1
    sizes = {name: unit.size for name, unit in units.items()}
    for name, of_block in (("up", "down"), ("down2", "up2"), ("head", None)):
        note = need_note(units[name].notes, Sensitivity)
        share = sizes[name] / (sizes[name] + sizes[of_block] if of_block else 2 * sizes["up"])
        for text, total in zip(note.options, note.total, strict=True):
            wanted = found[name] * share * 4.0 ** -Option.parse(text).bits
            assert total == pytest.approx(wanted, rel=1e-4)


def idle_second_block(size: float = 1e-4) -> ir.Model:
    """The second block adds next to nothing to the residual stream."""
    model = language()
    for unit in find_units(model):
        if unit.name == "down2":
            unit.replace(unit.matrix() * size)
    return model


@pytest.mark.parametrize("options", [*BLOCKS[1:], "metric=pruning, labels=text"])
def test_an_unimportant_block_scores_about_zero(options: str, tmp_path: Path) -> None:
    found = scores(options, idle_second_block(), context(tmp_path, sentences()))
    assert abs(found["up2"]) < 1e-3 * abs(found["up"])


def test_more_pruning_does_more_harm(tmp_path: Path) -> None:
    model, work = language(), context(tmp_path, sentences())
    found = [
        scores(f"metric=pruning, sparsity={s}", model, work)["up"] for s in (0.1, 0.3, 0.6)
    ]
    assert 0 < found[0] < found[1] < found[2]


@pytest.mark.parametrize("sparsity", [0.1, 0.3, 0.5])
def test_the_smallest_weights_are_pruned_and_no_others(sparsity: float) -> None:
    matrix = noise(30, 40)
    result = pruned(matrix, sparsity)
    gone = result == 0
    assert gone.sum() == round(sparsity * matrix.size)
    assert np.abs(matrix[gone]).max() <= np.abs(matrix[~gone]).min()
    np.testing.assert_array_equal(result[~gone], matrix[~gone])


def test_noise_is_measured_against_the_exact_model(tmp_path: Path) -> None:
    """The divergence grows with the square of small noise; without a baseline it would not."""
    model, work = language(), context(tmp_path, sentences())
    small, large = (
        scores(f"metric=taylor, form=perturbation, scale={s}", model, work)["up"]
        for s in (0.02, 0.04)
    )
    assert large / small == pytest.approx(4, rel=0.1)


def next_token_loss(weights: dict[str, np.ndarray], ids: np.ndarray) -> float:
    """The loss of ``language`` in double precision, written down once more."""
    x = weights["table"][ids]
    y = x + np.maximum(x @ weights["up"], 0) @ weights["down"]
    z = y + np.maximum(y @ weights["up2"], 0) @ weights["down2"]
    logits = (z @ weights["head"])[:-1]
    top = logits.max(axis=-1)
    total = np.log(np.exp(logits - top[:, None]).sum(axis=-1)) + top
    return float((total - logits[np.arange(len(logits)), ids[1:]]).mean())


def test_the_gradient_form_is_what_differences_give(tmp_path: Path) -> None:
    calibration = sentences(count=6, length=16)
    work = context(tmp_path, calibration)
    scale, step, draws = 0.01, 1e-3, 250
    found = scores(f"metric=taylor, labels=text, samples=3, scale={scale}", language(), work)
    exact = {name: array.astype(np.float64) for name, array in language_weights().items()}
    rng = np.random.default_rng(0)
    for names in (("up", "down"), ("up2", "down2")):
        slopes = []
        for feed in calibration.training[:3]:
            ids = feed["ids"][0]
            for _ in range(draws):
                moves = {
                    n: rng.standard_normal(exact[n].shape) * exact[n].std() * scale
                    for n in names
                }
                ends = [
                    next_token_loss(
                        exact | {n: exact[n] + sign * step * moves[n] for n in names}, ids
                    )
                    for sign in (1, -1)
                ]
                slopes.append(abs(ends[0] - ends[1]) / (2 * step))
        assert found[names[0]] == pytest.approx(np.mean(slopes), rel=0.08)


VIEWS = {
    "tied": """g (int64[batch, n] ids) => (float[batch, n, 80] y)
        { x = Gather(table, ids)
          a = MatMul(x, up)
          b = Relu(a)
          c = Add(x, b)
          t = Transpose <perm = [1, 0]> (table)
          y = MatMul(c, t) }""",
    "turned": """g (int64[batch, n] ids) => (float[batch, n, 80] y)
        { x = Gather(table, ids)
          u = Transpose <perm = [1, 0]> (up)
          a = MatMul(x, u)
          b = MatMul(a, u)
          y = MatMul(b, head) }""",
}


@pytest.mark.parametrize("name", [*VIEWS, "plain"])
def test_every_unit_that_is_changed_changes_the_output(name: str, tmp_path: Path) -> None:
    """The released code of CPTQuant replaced modules that nothing called."""
    model = language()
    if name in VIEWS:
        weights = {k: noise(80, 64, seed=1) for k in ("table",)}
        weights |= {"up": noise(64, 64, seed=2) / 8, "head": noise(64, 80, seed=3) / 8}
        text = f'<ir_version: 8, opset_import: ["" : 17]> {VIEWS[name]}'
        model = parse(text, {k: w for k, w in weights.items() if f"{k}" in VIEWS[name]})
    work = context(tmp_path, sentences())
    run("normalize,partition-blocks", model, work)
    runner = BlockRunner(work.runner, blocks_of(model), model.graph.outputs)
    (sample,) = Samples(sentences().feeds[:1])
    runner.run(sample)
    output = str(model.graph.outputs[0].name)
    exact = sample[output].clone()
    for unit in find_units(model):
        halved = {unit.weight: weight_of(unit, unit.matrix() * 0.5)}
        assert not np.allclose(runner.branch(sample, halved)[output], exact, rtol=1e-3)
        np.testing.assert_array_equal(sample[output], exact)
        runner.run(sample)
        np.testing.assert_array_equal(sample[output], exact)


def padded(calibration: Calibration) -> Calibration:
    """Adds five tokens of padding to every sample, and says so in a mask."""
    feeds: list[Feeds] = []
    for feed in calibration.feeds:
        ids = np.concatenate([feed["ids"], np.full((1, 5), 3)], axis=1)
        mask = np.ones_like(ids)
        mask[:, -5:] = 0
        feeds.append({"ids": ids, "mask": mask})
    return replace(calibration, feeds=feeds, key=calibration.key + "padded", mask="mask")


@pytest.mark.parametrize("options", [*BLOCKS[:2], "metric=taylor, labels=text"])
def test_padding_changes_no_score(options: str, tmp_path: Path) -> None:
    samples = sentences(count=12, length=12)
    before = scores(options, language(), context(tmp_path / "a", samples))
    masked = language()
    masked.graph.inputs.append(
        ir.Value(
            name="mask", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(["b", "n"])
        )
    )
    after = scores(options, masked, context(tmp_path / "b", padded(samples)))
    assert after == pytest.approx(before, rel=1e-4)


def test_blocks_that_flatten_tokens_are_compared_sample_by_sample(tmp_path: Path) -> None:
    """As exporters write the feed-forward halves of OPT."""
    text = """<ir_version: 8, opset_import: ["" : 17]>
        g (int64[batch, n] ids) => (float[batch, n, 80] logits)
        { x = Gather(table, ids)
          a = MatMul(x, up)
          b = Relu(a)
          c = MatMul(b, down)
          y = Add(x, c)
          s = Shape(y)
          flat = Reshape(y, rows)
          d = MatMul(flat, up2)
          e = Relu(d)
          f = MatMul(e, down2)
          z = Add(flat, f)
          wide = Reshape(z, s)
          logits = MatMul(wide, head) }"""
    samples = sentences(count=12)
    weights = {**language_weights(), "rows": np.array([-1, 64], dtype=np.int64)}
    found = scores("metric=cca", parse(text, weights), context(tmp_path / "a", samples))
    plain = scores("metric=cca", language(), context(tmp_path / "b", samples))
    assert found == pytest.approx(plain, rel=1e-4)


def test_models_without_labels_have_scores_too(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
        g (float[n, 64] x) => (float[n, 64] y)
        { a = MatMul(x, first)
          b = Tanh(a)
          y = MatMul(b, second) }"""
    weights = {"first": noise(64, 96, seed=1) / 8, "second": noise(96, 64, seed=2) / 10}
    work = context(tmp_path, vectors())
    for options in BLOCKS:
        found = scores(options, parse(text, weights), work)
        assert all(value > 0 for value in found.values()), options
    with pytest.raises(UsageError, match="labels=text needs a model that reads tokens"):
        scores("metric=pruning, labels=text", parse(text, weights), work)


def test_too_few_samples_for_correlations_are_refused(tmp_path: Path) -> None:
    work = context(tmp_path, sentences(count=6))
    with pytest.raises(UsageError, match="variant=plain needs 129 points") as caught:
        scores("metric=cca, variant=plain", language(), work)
    assert "window" in caught.value.hint
    with pytest.raises(UsageError, match="needs 6 points, and the samples give 4"):
        scores("metric=cca", language(), work)
    many = context(tmp_path, sentences(count=22, length=32))
    # Blocks that look at single tokens of 40 kinds: all outputs are linear in their counts.
    found = scores("metric=cca, variant=plain, window=4", language(), many)
    assert found["up"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ("metric=pruing", "did you mean 'pruning'"),
        ("metric=cca, variant=svca", "did you mean 'svcca'"),
        ("metric=taylor, form=gradients", "did you mean 'gradient'"),
        ("metric=pruning, labels=texts", "did you mean 'text'"),
        ("metric=pruning, sparsity=1.0", "between 0 and 1"),
        ("metric=pruning, samples=-1", "at least 0"),
        ("metric=taylor, scale=0.0", "between 0 and 1"),
        ("metric=taylor, seeds=5", "no use for seeds"),
        ("metric=cca, sparsity=0.5", "sparsity belongs to metric=pruning"),
        ("metric=fisher, samples=4", "no use for samples"),
        ("metric=pruning, units=4", "units belongs to metric=kl"),
    ],
)
def test_settings_that_make_no_sense(options: str, word: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_passes(f"annotate-sensitivity{{{options}}}")
    assert word in f"{caught.value.message} {caught.value.hint}"
