"""Nothing that reads samples looks at padding: other ids there change no number anywhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from mpqc.frontend.model_inputs import ModelInput
from mpqc.ir import Calibration, Feeds, find_units, quantizable, write_model
from mpqc.passes.engine.execution.padding import Padding
from mpqc.passes.engine.pipeline.base import PassContext
from mpqc.passes.engine.pipeline.progress import SilentProgress
from mpqc.passes.insert_qdq.activations import histograms
from mpqc.passes.rewrite_crossquant.observation import observe
from mpqc.tools.evaluate import HeldOut, evaluate_on
from mpqc.tools.runtimes import Runtime

from .attending import WIDTH, language
from .swept import CALIBRATE, context, run, sentences

pytestmark = [pytest.mark.ort, pytest.mark.usefixtures("one_thread")]
LENGTH, PADDED = 12, 3
ROUNDED = f"{CALIBRATE},annotate-sensitivity,allocate-bits{{budget=4.5}},quantize-weights"
Arrays = dict[str, np.ndarray]
Reader = Callable[[PassContext], dict[str, np.ndarray]]


def masked() -> ir.Model:
    """A decoder that could tell padding, and leaves it to whoever reads its values."""
    model = language()
    model.graph.inputs.append(
        ir.Value(
            name="real", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(["b", "n"])
        )
    )
    return model


def padded(filler: int, *, first: int = 0) -> Calibration:
    """Sentences that end in padding.

    Args:
        filler: The id that fills the padding.
        first: What the first token of every sentence is moved by.
    """
    feeds: list[Feeds] = []
    for feed in sentences(8, LENGTH).feeds:
        ids, mask = feed["ids"].copy(), np.ones_like(feed["ids"])
        ids[:, 0] = (ids[:, 0] + first) % 40
        ids[:, -PADDED:], mask[:, -PADDED:] = filler, 0
        feeds.append({"ids": ids, "real": mask})
    key = f"padded-{filler}-{first}"
    return Calibration(feeds, "noise", key, "ids", mask="real", held_out=2)


def arrays_of(passes: str) -> Reader:
    """Returns what reads all arrays that ``passes`` leave, and the weights."""

    def read(work: PassContext) -> Arrays:
        model = run(passes, masked(), work)
        weights = {unit.name: unit.matrix() for unit in quantizable(model)}
        names = work.arrays.names()
        return weights | {name: np.array(work.arrays.get(name)) for name in names}

    return read


def activations(model: ir.Model) -> list[ir.Value]:
    uses = (use for unit in find_units(model) for use in unit.uses)
    return list(dict.fromkeys(use.activation for use in uses if use.kind == "product"))


def ranges(work: PassContext) -> Arrays:
    """Static activation ranges, for insert-qdq."""
    model = masked()
    assert work.calibration is not None
    seen = histograms(model, activations(model), work.calibration.training, work)
    return {str(v.name): np.array([h.low, h.high, *h.points()[1]]) for v, h in seen.items()}


def shares(work: PassContext) -> Arrays:
    """Tokens that CrossQuant's search looks at."""
    model = masked()
    wanted = [{value: WIDTH} for value in activations(model)]
    found = observe(model, wanted, 4, work)
    return {str(v.name): tokens.numpy() for part in found for v, tokens in part.items()}


def report_of(name: str, passes: str) -> Reader:
    """Returns what reads the numbers that a pass reports."""

    def read(work: PassContext) -> Arrays:
        work.original = original(work.scratch.parent)
        run(passes, masked(), work)
        facts = work.report[name]
        return {key: np.array(one) for key, one in facts.items() if isinstance(one, float)}

    return read


def original(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_model(masked(), folder / "original.onnx")
    return folder / "original.onnx"


def evaluated(vocabulary: int) -> Reader:
    """Returns what reads the figures of eval, for logits or for any other output."""

    def read(work: PassContext) -> Arrays:
        assert work.calibration is not None
        before = original(work.scratch.parent)
        model = masked()
        for unit in quantizable(model):
            unit.replace(unit.matrix() * 1.1)
        write_model(model, before.with_name("result.onnx"))
        ids = ModelInput("ids", (1, "n"), np.dtype(np.int64), "tokens", vocabulary)
        held_out = HeldOut(work.calibration.feeds, ids, "real")
        result = before.with_name("result.onnx")
        found = evaluate_on(before, result, held_out, Runtime(), SilentProgress())
        return {key: np.array(one) for key, one in found.facts().items()}

    return read


def without_gradients(
    read: Reader,
) -> Reader:
    """Returns ``read`` for a model that torch cannot run."""

    def refused(work: PassContext) -> Arrays:
        work.cache = None  # stats from gradients would do, if there were any
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                "mpqc.backend.runner.Runner.unsupported",
                lambda self, nodes: {next(iter(nodes)): "Odd has no lowering"},
            )
            return read(work)

    return refused


def metric(options: str) -> Reader:
    return arrays_of(f"{CALIBRATE},annotate-sensitivity{{metric={options}}}")


READERS: Mapping[str, Reader] = {
    "calibrate": arrays_of(f"{CALIBRATE}{{coupled=true}}"),
    "calibrate, regression": arrays_of(f"{CALIBRATE}{{objective=regression}}"),
    "calibrate, fallback": without_gradients(arrays_of(CALIBRATE)),
    "calibrate, fallback, regression": without_gradients(
        arrays_of(f"{CALIBRATE}{{objective=regression}}")
    ),
    "attention-hessians": arrays_of(f"{CALIBRATE},attention-hessians{{probes=2}}"),
    "attention-hessians, exact": arrays_of(f"{CALIBRATE},attention-hessians{{probes=0}}"),
    "quantize-weights by layer": arrays_of(f"{ROUNDED}{{sequential=layer}}"),
    "quantize-weights by layer, local": arrays_of(
        f"{CALIBRATE},attention-hessians{{probes=2}},annotate-sensitivity,"
        "allocate-bits{budget=4.5},quantize-weights{sequential=layer}"
    ),
    "insert-qdq": ranges,
    "rewrite-crossquant": shares,
    "fisher": metric("fisher"),
    "kl": metric("kl, units=3"),
    "trace": metric("trace"),
    "activation-norm": metric("activation-norm"),
    "cca": metric("cca"),
    "pruning": metric("pruning"),
    "pruning, text": metric("pruning, labels=text"),
    "taylor": metric("taylor"),
    "taylor, text": metric("taylor, labels=text"),
    "taylor, regression": arrays_of(
        f"{CALIBRATE}{{objective=regression}},annotate-sensitivity{{metric=taylor}}"
    ),
    "taylor, perturbation": metric("taylor, form=perturbation, seeds=1"),
    "tune-scales": report_of("tune-scales", f"{ROUNDED},tune-scales"),
    "verify-numerics": report_of("verify-numerics", f"{ROUNDED},verify-numerics"),
    "verify-numerics, regression": report_of(
        "verify-numerics",
        f"{ROUNDED},verify-numerics".replace("calibrate", "calibrate{objective=regression}"),
    ),
    "eval": evaluated(80),
    "eval, regression": evaluated(0),
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stats of calibrate, which most readers start from, keyed by samples and options."""
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("reader", READERS)
def test_what_stands_at_padding_changes_nothing(
    reader: str, tmp_path: Path, cache: Path
) -> None:
    def read(name: str, samples: Calibration) -> Arrays:
        return READERS[reader](replace(context(tmp_path / name, samples), cache=cache))

    wanted, found = read("a", padded(3)), read("b", padded(77))
    assert wanted
    assert wanted.keys() == found.keys()
    for name, array in wanted.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-9, err_msg=name)
    other = read("c", padded(3, first=1))
    assert any(
        other[name].shape != array.shape or not np.allclose(other[name], array)
        for name, array in wanted.items()
    ), "a token that is no padding changes nothing either: this test could not fail"


def test_weights_alone_are_read_by_the_last_metric(tmp_path: Path) -> None:
    """``weight-error`` looks at no sample, so no row above is for it."""
    found = [metric("weight-error")(context(tmp_path / str(at), padded(at))) for at in (3, 77)]
    for name in (name for name in found[0] if name.endswith(("/loss", "/score"))):
        np.testing.assert_array_equal(found[0][name], found[1][name])


@pytest.mark.parametrize(
    ("shape", "counts"),
    [
        ((2, 3), [True, True, False, True, False, False]),  # as the mask
        ((6,), [True, True, False, True, False, False]),  # flattened
        ((2, 3, 2), [True] * 4 + [False] * 2 + [True] * 2 + [False] * 4),  # with heads
        ((2, 5), [True] * 10),  # something else
        ((), [True]),
    ],
)
def test_tokens_are_found_in_whatever_shape_they_are(
    shape: tuple[int, ...], counts: list[bool]
) -> None:
    padding = Padding.of({"mask": np.array([[1, 1, 0], [1, 0, 0]])}, "mask")
    real = padding.real(shape)
    assert real.shape == shape
    assert real.ravel().tolist() == counts
    rows = np.arange(int(np.prod(shape)) * 2).reshape(*shape, 2)
    assert padding.tokens(rows).tolist() == rows.reshape(-1, 2)[counts].tolist()


def test_without_padding_there_is_nothing_to_tell() -> None:
    for given in ({}, {"mask": np.ones((1, 4), bool)}):
        assert Padding.of(given, "mask").mask is None
    assert Padding.of({"mask": np.zeros((1, 4))}, None).mask is None
    assert not Padding.of({"mask": np.zeros((1, 4))}, "mask").real((1, 4)).any()
