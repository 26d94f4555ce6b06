"""Standard ONNX through the command line, in every runtime that can run it."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from mpqc.backend.openvino import runner
from mpqc.ir import UsageError
from mpqc.passes.engine.pipeline.spec import print_passes
from mpqc.tools.cli import main
from mpqc.tools.inspection import inspect_file
from mpqc.tools.options import CompileOptions
from mpqc.tools.runtimes import Runtime
from mpqc.tools.settings import make_settings

from .tiny_models import language_folder

pytestmark = [pytest.mark.ort, pytest.mark.timeout(300)]
needs_openvino = pytest.mark.skipif(
    find_spec("openvino") is None, reason="OpenVINO is not installed"
)
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MPQC_CACHE", str(tmp_path / "cache"))
    return language_folder(tmp_path / "model")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("Some words to read, and some more of them.\n" * 40)
    return path


def answer(capsys: Capture, *words: object) -> dict[str, object]:
    assert main([*map(str, words), "--json"]) == 0
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


@needs_openvino
@pytest.mark.parametrize(("budget", "activations"), [("4.5", "none"), ("8.2", "uint8")])
def test_all_runtimes_agree_with_the_simulation(
    budget: str,
    activations: str,
    folder: Path,
    text: Path,
    tmp_path: Path,
    capsys: Capture,
) -> None:
    out = tmp_path / "out"
    words = ["compile", folder, "--budget", budget, "--target", "qdq", "-o", out]
    few = ["--samples", 4, "--sequence-length", 32]
    found = answer(capsys, *words, *few, "--activations", activations)
    assert isinstance(found["got"], float)
    assert float(budget) - 0.3 < found["got"] <= float(budget)
    facts = json.loads((out / "mpqc.json").read_text())
    assert facts["settings"]["activations"] == activations
    assert ("activations" in facts["passes"]["insert-qdq"]) == (activations != "none")
    assert not [row for row in facts["units"] if "reason" in row]
    assert inspect_file(out).storage.bits_per_weight == pytest.approx(found["got"], abs=0.01)
    kl = {}
    for runtime in ("torch", "onnxruntime", "openvino"):
        how = ["--runtime", runtime, "--exact", "--text", text, *few]
        kl[runtime] = answer(capsys, "eval", folder, out, *how)["kl"]
    assert kl["onnxruntime"] == pytest.approx(kl["torch"], rel=0.03)
    assert kl["openvino"] == pytest.approx(kl["torch"], rel=0.03)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"activations": "int8"}, "ort-cpu rounds activations to uint8, not to int8"),
        ({"activations": "uint8", "target": "ort-cuda"}, "ort-cuda takes no quantized"),
        (
            {"activations": "uint8", "preset": "aptq"},
            "preset aptq offers no kernels of integers to ort-cpu",
        ),
        ({"activations": "int7", "target": "qdq"}, "unknown activations 'int7'"),
        (
            {"activations": "int8", "target": "qdq", "passes": "allocate-bits,insert-qdq"},
            "an option of insert-qdq",
        ),
    ],
)
def test_activations_that_mean_nothing_are_refused(given: dict[str, str], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        make_settings(CompileOptions(budget=4, **given))  # type: ignore[arg-type]


def pipeline(**given: object) -> str:
    return print_passes(make_settings(CompileOptions(budget=8, **given)).pipeline(8.0))  # type: ignore[arg-type]


def test_presets_end_in_what_the_target_wants() -> None:
    text = pipeline(target="qdq", activations="uint8")
    assert text.startswith("normalize,raise-opset,")
    assert "leave-headroom,insert-qdq{activations=uint8},verify-numerics" in text
    assert "lower-matmul-nbits" not in text
    for activations, assumed in (("uint8", True), ("none", False)):
        found = pipeline(preset="crossquant", target="qdq", activations=activations)
        assert ("activations=tensor" in found) == assumed
    ends = "leave-headroom,lower-convolutions,lower-recurrent,lower-matmul-nbits,"
    assert ends in pipeline(activations="uint8")
    assert "integers=quickest" in pipeline(activations="uint8")
    assert "integers=beside" in pipeline(latency=1.0)
    assert "integers" not in pipeline()
    assert "integers" not in pipeline(latency=1.0, activations="none")
    with pytest.raises(UsageError, match="no widths that expand"):
        make_settings(CompileOptions(file_budget="3.5", target="qdq"))


@pytest.mark.parametrize(
    ("given", "saves"),
    [
        ({}, False),
        ({"latency": 1.0}, False),
        ({"latency": 0.9}, True),
        ({"latency": 0.9, "activations": "none"}, False),
        ({"latency": 0.9, "preset": "cptquant-pmpq"}, False),
        ({"activations": "uint8"}, True),
        ({"objective": "latency", "max_loss": 0.1}, True),
        ({"passes": "annotate-sensitivity{integers=beside},allocate-bits"}, True),
    ],
)
def test_small_models_have_kernels_where_those_save_time(
    given: dict[str, Any], saves: bool
) -> None:
    assert make_settings(CompileOptions(budget=8, **given)).saves_time(8.0) == saves


def test_runtimes_that_do_not_exist_are_refused() -> None:
    with pytest.raises(UsageError, match="unknown runtime 'openvin'") as found:
        Runtime("openvin")
    assert "openvino" in found.value.hint
    with pytest.raises(UsageError, match="target of onnxruntime"):
        Runtime("openvino", target="ort-cuda")


def test_a_missing_openvino_is_named_with_its_extra(
    folder: Path, text: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(runner, "find_spec", lambda name: None)
    words = ["eval", folder, folder, "--text", text, "--runtime", "openvino"]
    assert main([str(one) for one in words]) == 4
    assert "mpqc[openvino]" in capsys.readouterr().err
    assert "mpqc[openvino]" in str(answer(capsys, "doctor")["runtimes"])


@needs_openvino
def test_the_doctor_says_that_openvino_runs(capsys: Capture) -> None:
    assert answer(capsys, "doctor")["runtimes"] == {"openvino": None}


def test_a_preset_of_other_operators_is_refused() -> None:
    with pytest.raises(UsageError, match="preset cmpq-even has no form for target qdq"):
        pipeline(preset="cmpq-even", target="qdq")


def test_costly_activations_stay_in_float(
    folder: Path,
    text: Path,
    tmp_path: Path,
    capsys: Capture,
) -> None:
    rounded = {}
    for tolerance in (0.0, 0.2, 1000.0):
        out = tmp_path / f"out-{tolerance}"
        passes = (
            "normalize,raise-opset,partition-blocks,calibrate,annotate-sensitivity,"
            "allocate-bits{budget=8.2},quantize-weights,leave-headroom,"
            f"insert-qdq{{activations=uint8, tolerance={tolerance}}},verify-numerics"
        )
        words = ["compile", folder, "--budget", 8.2, "--target", "qdq", "-p", passes]
        words += ["-o", out, "--calibration", text, "--samples", 4, "--sequence-length", 32]
        predicted = answer(capsys, *words)["predicted"]
        facts = json.loads((out / "mpqc.json").read_text())["passes"]["insert-qdq"]
        assert isinstance(predicted, float)
        weights = predicted - facts["activation_loss"]
        assert facts["activation_loss"] <= tolerance * weights * 1.001
        dropped = list(facts["too_costly"].values())
        cheapest = min(dropped, default=float("inf"))
        assert all(one["predicted"] <= cheapest for one in facts["activations"].values())
        rounded[tolerance] = (len(facts["activations"]), len(dropped))
    assert rounded[0.0][0] == rounded[1000.0][1] == 0
    assert 0 < rounded[0.2][0] < rounded[1000.0][0]
