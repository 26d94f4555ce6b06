"""The benchmark for GPUs: prepared here, and run dry on the CPU."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpqc.backend.onnxruntime.probing import probe
from mpqc.backend.packages import Package
from mpqc.ir import InputError, MachineError
from mpqc.passes.engine.pipeline.progress import SilentProgress
from mpqc.tools.benchmarks.__main__ import main
from mpqc.tools.benchmarks.gpu import steps as gpu_steps
from mpqc.tools.benchmarks.gpu.compiling import measure_compile, measure_shape
from mpqc.tools.benchmarks.gpu.kit import FORMS, TENSORRT, read_kit, rows_of
from mpqc.tools.benchmarks.gpu.measuring import distance, measure_engine, measure_file, times
from mpqc.tools.benchmarks.gpu.page import page, section
from mpqc.tools.benchmarks.shapes import SHAPES

from .tiny_models import language_folder, vector_model

pytestmark = [pytest.mark.ort, pytest.mark.timeout(120)]
try_rows = gpu_steps.rows  # before the fixture below
Patch = pytest.MonkeyPatch
Capture = pytest.CaptureFixture[str]
FILES = [f"file {one}" for one in FORMS]


def prepare(model: Path, folder: Path, *words: str) -> int:
    common = ["--budget", "5.2", "--preset", "fast", "--samples", "4"]
    return main(["gpu", "prepare", str(model), "-o", str(folder), *common, *words])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the device, with all forms of a language model."""
    folder = tmp_path_factory.mktemp("gpu")
    text = folder / "text.txt"
    text.write_text("Some words to read, and some more of them.\n" * 40)
    words = ["--calibration", str(text), "--sequence-length", "24"]
    assert prepare(language_folder(folder / "model"), folder / "kit", *words) == 0
    return folder / "kit"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: Patch) -> None:
    """The rows of ort-cuda take seconds to try and have tests of their own."""
    row = {"row": "product, 4 bits, groups of 32", "used": True, "verdict": "right"}
    rows = {"rows": [{**row, "detail": "", "error": 1e-7, "time": 0.5}]}
    monkeypatch.setattr(gpu_steps, "rows", lambda provider: rows)
    made = {"passes": {"calibrate": 2.0}, "wall": 3.0, "memory": 5 * 10**9, "weights": 10**9}
    for name in ("measure_compile", "measure_shape"):
        monkeypatch.setattr(gpu_steps, name, lambda *given: {**made, "device": given[1]})


def run(kit: Path, output: Path, *words: str) -> dict[str, Any]:
    """Runs dry; returns what was measured."""
    assert main(["gpu", "run", str(kit), "-o", str(output), "--provider", "cpu", *words]) == 0
    content: dict[str, Any] = json.loads(output.read_text())
    return content


def test_everything_that_onnx_runtime_does_runs_dry(
    made: Path, tmp_path: Path, capsys: Capture
) -> None:
    found = run(made, tmp_path / "out.json")
    assert found["given"]["provider"] == "cpu"
    measured = found["measured"]
    assert measured["device"]["dry_run"]
    compiled = {"compile", "compile shape tiny"}
    assert set(measured) == {"device", "rows", "engine", *FILES, *compiled}
    for name in FILES:
        assert measured[name]["fallen_back"] == {}
        for one in measured[name]["runs"].values():
            assert one["largest"] <= 1e-4 * one["scale"]
            assert abs(one["kl"]) < 1e-6
            assert one["milliseconds"] > 0
            assert one["calls"] >= 5
    assert set(measured["file original"]["runs"]) == {"single", "prompt"}
    capsys.readouterr()
    assert main(["gpu", "table", str(tmp_path / "out.json")]) == 0
    shown = capsys.readouterr().out
    assert "A dry run on the CPU" in shown
    assert all(f"| {one} | 0 |" in shown for one in FORMS)
    assert "| product, 4 bits, groups of 32 | yes | right |" in shown


def test_forms_are_what_they_are_called(made: Path) -> None:
    kit = read_kit(made)
    bits = {name: form.bits for name, form in kit.forms.items()}
    assert bits["original"] == 32
    assert bits["float16"] == 16
    assert all(bits[name] < 5.3 for name in FORMS[2:])
    assert all(form.logits and form.output == "logits" for form in kit.forms.values())
    feed = kit.feed(kit.forms["original"], "prompt")
    assert feed["input_ids"].shape == (1, 512)
    simulated = kit.reference(kit.forms[TENSORRT], "prompt", "torch")
    by_runtime = kit.reference(kit.forms[TENSORRT], "prompt")
    assert simulated.shape == by_runtime.shape == (16, 256)
    assert np.abs(simulated - by_runtime).max() < 0.05 * np.abs(simulated).max()


def test_references_are_compared_with_what_the_device_gives(
    made: Path, tmp_path: Path
) -> None:
    """A reference that another model made is far away, and the table tells."""
    kit = tmp_path / "kit"
    shutil.copytree(made, kit)
    shutil.copy(kit / "reference-uniform-onnxruntime.npz", kit / "other.npz")
    (kit / "other.npz").replace(kit / "reference-original-onnxruntime.npz")
    measured = run(kit, tmp_path / "out.json")["measured"]
    assert measured["file original"]["runs"]["prompt"]["kl"] > 1e-3
    assert measured["file original"]["runs"]["prompt"]["largest"] > 1e-2


def test_it_goes_on_where_it_was(made: Path, tmp_path: Path, monkeypatch: Patch) -> None:
    output, ran = tmp_path / "out.json", list[str]()

    def interrupted(kit: Any, form: Any, provider: str) -> dict[str, Any]:
        ran.append(form.name)
        if len(ran) == 2:
            raise KeyboardInterrupt
        return measure_file(kit, form, provider)

    monkeypatch.setattr(gpu_steps, "measure_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(made, output)
    before = json.loads(output.read_text())["measured"]
    assert before["file ort-cuda"] == {"failed": "it was begun and did not end"}
    after = run(made, output)["measured"]
    assert ran == ["float16", "ort-cuda", "uniform", "original", "tensorrt"]
    assert after["file float16"] == before["file float16"]
    assert "failed" in after["file ort-cuda"]
    again = run(made, output, "--again")["measured"]
    assert ran[5:] == ["ort-cuda"]
    assert "runs" in again["file ort-cuda"]


def test_a_step_that_fails_is_named_and_others_go_on(
    made: Path, tmp_path: Path, capsys: Capture
) -> None:
    kit = tmp_path / "kit"
    shutil.copytree(made, kit)
    (kit / "uniform" / "model.onnx").write_bytes(b"no model")
    measured = run(kit, tmp_path / "out.json")["measured"]
    assert "failed" in measured["file uniform"]
    assert "\n" not in measured["file uniform"]["failed"]
    assert "runs" in measured["file tensorrt"]
    capsys.readouterr()
    assert main(["gpu", "table", str(tmp_path / "out.json")]) == 0
    assert "file uniform could not be done: " in capsys.readouterr().out


def test_without_tensorrt_that_is_said(made: Path, tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(Package, "installed", lambda self: {})
    measured = run(made, tmp_path / "out.json")["measured"]
    assert measured["engine"]["failed"] == "TensorRT: not installed: pip install tensorrt"


def test_no_step_begins_when_time_is_up(made: Path, tmp_path: Path, capsys: Capture) -> None:
    assert (
        main(["gpu", "run", str(made), "-o", str(tmp_path / "out.json"), "--seconds", "0"])
        == 0
    )
    assert "no time for device, rows, file float16" in capsys.readouterr().out
    assert not (tmp_path / "out.json").exists()


def test_without_a_device_each_step_says_so(
    made: Path, tmp_path: Path, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(gpu_steps, "nvidia_driver", lambda: None)
    monkeypatch.setitem(gpu_steps.PROVIDERS, "cuda", "NoSuchExecutionProvider")
    output = tmp_path / "out.json"
    assert main(["gpu", "run", str(made), "-o", str(output)]) == 0
    measured = json.loads(output.read_text())["measured"]
    assert measured["device"]["failed"] == "there is no NVIDIA device, or no driver"
    assert "NoSuchExecutionProvider" in measured["file original"]["failed"]
    assert "engine in onnxruntime" in measured
    assert "could not be done" in page(output)


def test_results_of_one_folder_are_not_mixed_with_another(
    made: Path, tmp_path: Path, capsys: Capture
) -> None:
    run(made, tmp_path / "out.json")
    capsys.readouterr()
    assert main(["gpu", "run", str(made), "-o", str(tmp_path / "out.json")]) == 2
    assert "not the same provider" in capsys.readouterr().err
    run(made, tmp_path / "out.json", "--overwrite")


def test_a_model_without_tokens_has_one_run(tmp_path: Path) -> None:
    model = vector_model(tmp_path / "m.onnx")
    words = ["--random-calibration", "--forms", "tensorrt", "original"]
    assert prepare(model, tmp_path / "kit", *words) == 0
    kit = read_kit(tmp_path / "kit")
    assert list(kit.forms) == ["original", "tensorrt"]
    assert kit.runs == ("run",)
    measured = run(tmp_path / "kit", tmp_path / "out.json")["measured"]
    assert "kl" not in measured["file original"]["runs"]["run"]
    assert "file float16" not in measured
    assert "| original | 0 |" in page(tmp_path / "out.json")


def test_what_cannot_be_is_a_matter_of_usage(tmp_path: Path, capsys: Capture) -> None:
    assert prepare(tmp_path / "none.onnx", tmp_path / "kit", "--forms", "floot16") == 2
    assert "did you mean 'float16'?" in capsys.readouterr().err
    assert main(["gpu", "run", str(tmp_path), "-o", str(tmp_path / "out.json")]) == 3
    assert "gpu prepare" in capsys.readouterr().err
    assert main(["gpu", "table", str(tmp_path / "out.json")]) == 2


def test_a_folder_names_no_file_outside(made: Path, tmp_path: Path) -> None:
    kit = tmp_path / "kit"
    shutil.copytree(made, kit)
    plan = json.loads((kit / "plan.json").read_text())
    plan["forms"][0]["name"] = "../model"
    (kit / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(InputError, match="no name of a file"):
        read_kit(kit)


def test_rows_of_the_target_are_tried(monkeypatch: Patch) -> None:
    monkeypatch.setattr(gpu_steps, "probe", lambda table, timed: probe(table))
    found = try_rows("cpu")["rows"]
    assert len(found) > 30
    assert {one["verdict"] for one in found} == {"right"}


def test_distances() -> None:
    wanted = np.array([[0.0, 1.0], [2.0, -4.0]], np.float32)
    found = distance(wanted, wanted + np.array([[0, 0], [0, 1]], np.float32), logits=True)
    assert found["largest"] == 1
    assert found["scale"] == 4
    assert found["error"] == pytest.approx(1 / np.sqrt(21))
    assert 0 < found["kl"] < 0.1
    assert "kl" not in distance(wanted, wanted, logits=False)
    assert distance(wanted, wanted * np.nan, logits=False)["error"] is None
    assert "shape" in distance(wanted, wanted[:1], logits=True)


def test_rows_end_with_the_last(made: Path) -> None:
    array = np.arange(2 * 100 * 3).reshape(2, 100, 3)
    assert rows_of(array).shape == (16, 3)
    assert rows_of(array)[-1].tolist() == array[-1, -1].tolist()
    assert rows_of(array[:, :1]).tolist() == array[:, 0].tolist()
    assert rows_of(np.array(3)).tolist() == [[3]]


def test_calls_that_warm_up_do_not_count() -> None:
    calls = []
    found = times(lambda: calls.append(1))
    assert len(calls) == found["calls"] + 3


def test_the_page_names_the_device_and_what_its_engine_computes_in(tmp_path: Path) -> None:
    runs = {"token": {"largest": 0.01, "scale": 5.0, "kl": 1e-4, "milliseconds": 2.0}}
    half = {"token": {**runs["token"], "milliseconds": 4.0}}
    gpu = {"name": "NVIDIA H200", "capability": "9.0", "memory": 150e9}
    engine = {"build": 31, "layers": 90, "products": {"INT4": 7, "FP16": 2}, "runs": runs}
    measured = {
        "device": {"gpus": [gpu], "driver": "580.1", "packages": {}},
        "file float16": {"fallen_back": {}, "runs": half},
        "file ort-cuda": {"fallen_back": {"Gather": 1}, "runs": runs},
        "engine": engine,
    }
    given = {"model": "SmolLM2", "budget": 4.5}
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"given": given, "measured": measured}))
    shown = section(path)
    assert "NVIDIA H200 (compute capability 9.0, 150 GB); driver 580.1." in shown
    assert "SmolLM2, at 4.5 bits" in shown
    assert "| ort-cuda | 1 Gather | 0.01 | 0.0001 | 2 | 0.50 |" in shown
    assert "| token | 0.01 | 0.0001 | 2 | 0.50 |" in shown
    assert "31 s to build and has 90 layers; products: 7 in INT4, 2 in FP16" in shown
    assert "Nothing" in section(tmp_path / "none.json")


@pytest.mark.trt
@pytest.mark.gpu
def test_an_engine_computes_what_the_standard_says(made: Path) -> None:
    kit = read_kit(made)
    found = measure_engine(kit, kit.forms[TENSORRT])
    assert found["products"]
    for one in found["runs"].values():
        assert one["error"] < 0.02


def test_an_engine_without_tensorrt_is_an_error_of_the_machine(
    made: Path, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(Package, "installed", lambda self: {})
    kit = read_kit(made)
    with pytest.raises(MachineError) as caught:
        measure_engine(kit, kit.forms[TENSORRT])
    assert caught.value.hint == "pip install tensorrt"


def test_compilations_have_a_table(made: Path, tmp_path: Path) -> None:
    run(made, tmp_path / "out.json", "--shape", "1b")
    shown = page(tmp_path / "out.json")
    assert "the model: 1000 M weights on cpu | 1b: 1000 M weights on cpu" in shown
    assert "| calibrate | 2.0 | 2.0 |" in shown
    assert "| GB of the device | 5.00 | 5.00 |" in shown


@pytest.mark.slow
@pytest.mark.ci_sample
def test_the_model_and_a_shape_are_compiled(made: Path) -> None:
    pytest.importorskip("onnxruntime_genai")
    found = [
        measure_compile(read_kit(made), "cpu", SilentProgress()),
        measure_shape("tiny", "cpu", SilentProgress()),
    ]
    for one in found:
        assert {"calibrate", "quantize-weights"} <= set(one["passes"])
        assert 0 < sum(one["passes"].values()) < one["wall"]
        assert one["memory"] is None
        assert one["measured"]["kl"] > 0
    assert found[1]["weights"] == SHAPES["tiny"].weights


def test_the_shape_of_a_billion_weights() -> None:
    assert SHAPES["1b"].weights == 1_069_547_520


@pytest.mark.gpu
def test_a_compilation_counts_the_device_s_memory() -> None:
    found = measure_shape("tiny", "cuda:0", SilentProgress())
    assert found["memory"] > 0
