"""The whole road on tiny models: compile, inspect, evaluate, resume, report."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import numpy as np
import onnx
import pytest

import mpqc
from mpqc.backend.onnxruntime import optimized_ops
from mpqc.ir import InfeasibleBudget, UsageError
from mpqc.passes.engine.execution.padding import Padding
from mpqc.passes.engine.numerics.divergence import kl_divergence
from mpqc.tools.cli import main
from mpqc.tools.evaluate import _Tally, evaluate
from mpqc.tools.inspection import inspect_file
from mpqc.tools.resume import opt

from .tiny_models import VOCABULARY, WIDTH, language_folder, vector_model

pytestmark = [pytest.mark.ort, pytest.mark.timeout(120)]

FEW: dict[str, Any] = {"samples": 4, "sequence_length": 32}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPQC_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return language_folder(tmp_path / "model")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("Some words to read, and some more of them.\n" * 40)
    return path


def read(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_meets_the_budget_and_says_so(folder: Path, tmp_path: Path) -> None:
    result = mpqc.compile(folder, budget=4.5, output=tmp_path / "out", **FEW)
    assert result.got <= 4.5
    assert result.got > 4.2
    assert sorted(read(result.output)) == [
        "README.md",
        "model.onnx",
        "model.onnx.data",
        "mpqc.json",
        "report.html",
        "tokenizer.json",
    ]
    assert inspect_file(result.model).storage.bits_per_weight == pytest.approx(result.got)
    facts = json.loads((result.output / "mpqc.json").read_text())
    assert facts["asked"]["bits"] == 4.5
    assert facts["got"]["weights"] == 2 * VOCABULARY * WIDTH + 4 * WIDTH * WIDTH
    assert facts["measured"]["kl"] >= 0
    assert {unit["name"] for unit in facts["units"]} == {"table", "up", "down", "head"}
    assert "pydoc_data.topics" in facts["input"]["calibration"]["source"]
    assert not facts["random_calibration"]


def test_the_same_compile_twice_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    first = mpqc.compile(folder, budget=3.5, output=tmp_path / "a", **FEW)
    again = mpqc.compile(folder, budget=3.5, output=tmp_path / "b", **FEW)
    one, other = read(first.output), read(again.output)
    facts = [json.loads(files.pop("mpqc.json")) for files in (one, other)]
    assert one == other
    for entry in facts:
        entry.pop("timings")
    assert facts[0] == facts[1]


def test_a_size_bounds_all_files(folder: Path, tmp_path: Path) -> None:
    result = mpqc.compile(folder, budget="55kB", output=tmp_path / "out", **FEW)
    assert sum(map(len, read(result.output).values())) == result.size <= 55_000
    with pytest.raises(InfeasibleBudget):
        mpqc.compile(folder, budget="5kB", output=tmp_path / "none", **FEW)
    assert not (tmp_path / "none").exists()


def test_times_are_predicted_and_measured(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["compile", str(folder), "--budget", "4.5", "-o", str(tmp_path / "out")]
    words += ["--random-calibration", "--samples", "4", "--sequence-length", "24"]
    assert main([*words, "--kernels", "always", "--preset", "fast"]) == 0
    facts = json.loads((tmp_path / "out/mpqc.json").read_text())
    (run,) = facts["timings"]["runs"].values()
    assert min(run["original"], run["result"]) > 0
    assert "predicted" in run
    assert facts["settings"]["costs"] == "avx512-vnni"
    seen = capsys.readouterr()
    assert "time of a run, one thread" in seen.out
    assert "predicted)" in seen.out
    assert "predicted times are those of another machine: AMD EPYC (avx512-vnni)" in seen.err
    page = (tmp_path / "out/report.html").read_text()
    assert "By the table avx512-vnni" in page


@pytest.mark.parametrize(
    ("more", "code", "why"),
    [
        (["--latency", "0.0001"], 5, "ask for --latency"),
        (["--max-loss", "1e-12"], 5, "ask for --max-loss"),
        (["--objective", "latency"], 2, "say what may be lost"),
        (["--latency", "0"], 2, "latency must be a number above 0"),
        (["--machine", "avx-2"], 2, "unknown machine"),
        (["--preset", "cmpq-even", "--latency", "1"], 2, "a latency means nothing"),
    ],
)
def test_bounds_that_cannot_be_met(
    more: list[str],
    code: int,
    why: str,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["compile", str(folder), "--budget", "4.5", "-o", str(tmp_path / "out")]
    words += ["--random-calibration", "--samples", "4", "--sequence-length", "24"]
    words += ["--kernels", "always"] + ([] if "--preset" in more else ["--preset", "fast"])
    assert main([*words, *more]) == code
    assert why in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_file_budget_bounds_the_file_alone(folder: Path, tmp_path: Path) -> None:
    free = {**FEW, "latency": 1000}  # a model this small is quickest with few row classes
    plain = mpqc.compile(folder, budget=3.5, output=tmp_path / "plain", **free)
    result = mpqc.compile(folder, file_budget=3.5, output=tmp_path / "out", **free)
    assert 3.4 < result.got <= 3.5
    assert result.resident_bits > result.got + 0.5
    assert result.predicted is not None
    assert plain.predicted is not None
    assert result.predicted < 0.9 * plain.predicted
    facts = result.report
    assert facts["asked"] == {"bits": 3.5, "bytes": None, "file": True}
    assert "--file-budget 3.5" in facts["command"]
    assert not plain.report["asked"]["file"]
    widths = {bits for unit in facts["units"] for bits in unit["widths"]}
    assert widths & {"3", "5", "6", "7"}
    seen = inspect_file(result.model).storage
    assert seen.bits_per_weight == pytest.approx(result.got)
    assert seen.resident_bits_per_weight == pytest.approx(result.resident_bits)
    assert "a bound for the file alone" in (result.output / "report.html").read_text()
    left = optimized_ops(result.model)
    assert not {"QLinearConv", "BitwiseAnd"} & left.keys()


@pytest.mark.parametrize("preset", ["uniform"])
def test_a_file_budget_opens_widths_to_any_preset(
    preset: str, folder: Path, tmp_path: Path
) -> None:
    result = mpqc.compile(
        folder, file_budget=3.5, output=tmp_path / "out", preset=preset, **FEW
    )
    widths = {bits for unit in result.report["units"] for bits in unit["widths"]}
    assert widths == {"3"}


def test_a_file_budget_in_bytes(folder: Path, tmp_path: Path) -> None:
    result = mpqc.compile(folder, file_budget="55kB", output=tmp_path / "out", **FEW)
    assert sum(map(len, read(result.output).values())) == result.size <= 55_000


def test_a_plain_budget_refuses_to_grow_in_memory(folder: Path, tmp_path: Path) -> None:
    passes = "normalize,calibrate,annotate-sensitivity{expand=true},allocate-bits"
    with pytest.raises(UsageError, match="what stays in memory"):
        mpqc.compile(folder, budget=3.5, output=tmp_path / "out", passes=passes, **FEW)
    with pytest.raises(UsageError, match="no annotate-sensitivity"):
        mpqc.compile(folder, file_budget=3.5, passes="normalize,allocate-bits", **FEW)
    with pytest.raises(UsageError, match="different things"):
        mpqc.compile(folder, budget=3.5, file_budget=3.5, **FEW)


def test_an_infeasible_budget_names_the_smallest(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["compile", str(folder), "--budget", "0.5", "-o", str(tmp_path / "out")]
    assert main([*words, "--samples", "2", "--sequence-length", "32", "--json"]) == 5
    answer = json.loads(capsys.readouterr().out)
    assert answer["error"]["code"] == "infeasible-budget"
    assert any(char.isdigit() for char in answer["error"]["message"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("asked", ["0.5", "20kB"])
def test_the_smallest_that_can_be_met(asked: str, folder: Path, tmp_path: Path) -> None:
    few: dict[str, Any] = {**FEW, "output": tmp_path / "out", "as_small_as_possible": True}
    result = mpqc.compile(folder, budget=asked, **few)
    assert 0.5 < result.asked < 4
    assert result.got <= result.asked
    with pytest.raises(InfeasibleBudget, match=f"smallest is {result.asked:.3f}"):
        mpqc.compile(folder, budget=result.asked - 0.01, **FEW)


def test_evaluation(folder: Path, text: Path, tmp_path: Path) -> None:
    result = mpqc.compile(folder, budget=4, output=tmp_path / "out", calibration=text, **FEW)
    same = evaluate(folder, folder, [text], samples=2, sequence_length=32)
    assert same.kl == pytest.approx(0, abs=1e-9)
    assert same.top1 == 1.0
    assert same.bits == 32.0
    found = evaluate(folder, result.output, [text], samples=2, sequence_length=32)
    assert found.kl is not None
    assert found.kl > 0
    assert found.tokens == 2 * 31
    assert found.bits == pytest.approx(result.got)
    assert found.resident_bits == pytest.approx(result.resident_bits)
    assert found.original_perplexity == same.result_perplexity


def test_a_model_without_text(tmp_path: Path) -> None:
    model = vector_model(tmp_path / "vector.onnx")
    arrays = tmp_path / "samples.npz"
    np.savez(arrays, x=np.random.default_rng(0).standard_normal((24, WIDTH)))
    result = mpqc.compile(model, budget=5, output=tmp_path / "out", calibration=[arrays])
    assert result.measured["cosine"] > 0.9
    found = evaluate(model, result.output, [arrays])
    assert found.kl is None
    assert found.cosine is not None
    assert found.cosine > 0.9


def test_random_calibration_marks_the_result(tmp_path: Path) -> None:
    model = vector_model(tmp_path / "vector.onnx")
    result = mpqc.compile(
        model, budget=5, output=tmp_path / "out", random_calibration=True, **FEW
    )
    assert result.report["random_calibration"] is True
    assert "random noise" in (result.output / "report.html").read_text()


@pytest.mark.parametrize(
    "after", ["normalize", "calibrate", "allocate-bits", "quantize-weights"]
)
def test_dumps_resume_to_the_same_bytes(after: str, folder: Path, tmp_path: Path) -> None:
    whole = mpqc.compile(
        folder, budget=3.5, output=tmp_path / "out", dump_after_each=tmp_path / "dumps", **FEW
    )
    (dump,) = (tmp_path / "dumps").glob(f"*_{after}.onnx")
    resumed = opt(dump, output=tmp_path / "resumed")
    assert resumed.output is not None
    one, other = read(whole.output), read(resumed.output)
    facts = [json.loads(files.pop("mpqc.json")) for files in (one, other)]
    assert one == other
    for entry in facts:
        entry.pop("timings")
    assert facts[0] == facts[1]


def test_opt_prints_any_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = vector_model(tmp_path / "vector.onnx")
    assert main(["opt", str(model), "-p", "normalize,partition-blocks"]) == 0
    assert "#block" in capsys.readouterr().out
    with pytest.raises(UsageError, match="no dump"):
        opt(model)


def test_opt_says_what_the_passes_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = vector_model(tmp_path / "vector.onnx")
    assert main(["opt", str(model), "-p", "normalize,raise-opset{version=22}", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["passes"] == {"raise-opset": {"from": ANY, "to": 22}}
    assert found["passes"]["raise-opset"]["from"] < 22


def test_a_recipe_chooses_the_pipeline(folder: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "nearest.toml"
    recipe.write_text(
        'pipeline = "normalize,partition-blocks,calibrate,annotate-sensitivity,'
        'allocate-bits{granularity=unit},quantize-weights{rounding=nearest},lower-matmul-nbits"\n'
        "samples = 4\nsequence-length = 16\n"
    )
    result = mpqc.compile(folder, budget=4.5, output=tmp_path / "out", recipe=recipe)
    assert "rounding=nearest" in result.report["pipeline"]
    assert "budget=4.5" in result.report["pipeline"]
    recipe.write_text("sampels = 3\n")
    with pytest.raises(UsageError) as caught:
        mpqc.compile(folder, budget=4.5, output=tmp_path / "out2", recipe=recipe)
    assert "samples" in caught.value.hint


def test_a_torch_module(tmp_path: Path) -> None:
    import torch

    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Linear(WIDTH, 96), torch.nn.GELU(), torch.nn.Linear(96, WIDTH)
    )
    batch = torch.export.Dim("batch")
    result = mpqc.compile(
        module,
        budget=5,
        output=tmp_path / "out",
        example_inputs=(torch.zeros(2, WIDTH),),
        dynamic_shapes=({0: batch},),
        random_calibration=True,
        **FEW,
    )
    assert result.got <= 5
    found = onnx.load(result.model).graph.input[0].type.tensor_type.shape.dim[0]
    assert found.dim_param == "batch"
    with pytest.raises(UsageError, match="example inputs"):
        mpqc.compile(module, budget=5, output=tmp_path / "out2")


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)


def test_the_report_runs_nothing(tmp_path: Path) -> None:
    model = vector_model(tmp_path / "in" / "vector.onnx")
    proto = onnx.load(model)
    evil = "<script>alert(1)</script><img src=x>"
    proto.graph.initializer[0].name = evil
    proto.graph.node[0].input[1] = evil
    model.write_bytes(proto.SerializeToString())
    result = mpqc.compile(
        model, budget=5, output=tmp_path / "out", random_calibration=True, **FEW
    )
    page = (result.output / "report.html").read_text()
    tags = _Tags()
    tags.feed(page)
    assert not tags.tags & {"script", "img", "link", "iframe", "object"}
    assert "&lt;script&gt;" in page
    assert "default-src &#39;none&#39;" in page or "default-src 'none'" in page


def old_vector_model(path: Path, opset: int) -> Path:
    model = onnx.load(vector_model(path))
    model.opset_import[0].version = opset
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("preset", ["cmpq", "cmpq-grid", "cmpq-even"])
def test_older_operators_do_not_cost_the_budget(preset: str, tmp_path: Path) -> None:
    """Opset 14 cannot add single outliers: all weights stayed in float, and nobody minded."""
    model = old_vector_model(tmp_path / "model.onnx", 14)
    budget: dict[str, Any] = {"file_budget": 6.0} if preset != "cmpq-even" else {"budget": 6.0}
    result = mpqc.compile(
        model, **budget, preset=preset, output=tmp_path / "out", random_calibration=True, **FEW
    )
    assert result.got <= 6.0


def test_a_result_beyond_its_budget_is_refused(tmp_path: Path) -> None:
    model = old_vector_model(tmp_path / "model.onnx", 10)
    passes = (
        "normalize,partition-blocks,calibrate,allocate-channels{budget=6.0},"
        "quantize-channels,lower-channels"
    )
    with pytest.raises(InfeasibleBudget, match=r"takes 32\.0.*opset 10 has no"):
        mpqc.compile(
            model,
            file_budget=6.0,
            passes=passes,
            output=tmp_path / "out",
            random_calibration=True,
            **FEW,
        )
    assert not (tmp_path / "out").exists()


def test_entries_that_a_model_rules_out_weigh_nothing() -> None:
    tally = _Tally()
    wanted = np.array([[1.0, 2.0, -np.inf], [0.0, 0.0, 0.0]])
    found = np.array([[1.1, 2.0, -np.inf], [0.0, 0.0, 0.0]])
    tally.add_logits(wanted[None], found[None], np.zeros((1, 2), int), Padding())
    expected = kl_divergence(wanted[:1], found[:1])
    assert tally.facts()["kl"] == pytest.approx(float(expected[0]))
