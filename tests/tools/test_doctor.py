"""mpqc doctor: the installation in plain words, and every row of the tables tried."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from mpqc.backend import packages
from mpqc.backend.gpu import Driver, Gpu
from mpqc.backend.onnxruntime import capabilities, probing
from mpqc.backend.onnxruntime.row_models import row_model
from mpqc.tools import doctor
from mpqc.tools.cli import main

pytestmark = pytest.mark.ort
Capture = pytest.CaptureFixture[str]
Change = Callable[[dict[str, Any]], None]


def told(capsys: Capture, *words: str, code: int = 0) -> dict[str, Any]:
    assert main(["doctor", *words, "--json"]) == code
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_every_row_of_what_works_here_is_tried(capsys: Capture) -> None:
    found = told(capsys)
    assert found["ok"]
    for name, problem in found["targets"].items():
        verdicts = {row["verdict"] for row in found["rows"][name]}
        assert verdicts == ({"right"} if problem is None else {"cannot be tried here"})
    assert found["targets"]["ort-cpu"] is None
    assert found["providers"]["CPUExecutionProvider"] is None
    assert found["memory"] > 0
    assert found["disk"]["this folder"] > 0


@pytest.mark.slow
@pytest.mark.ci_sample
def test_nothing_of_a_library_s_log_reaches_the_terminal() -> None:
    words = [sys.executable, "-m", "mpqc.tools.cli", "doctor"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for raw in ("onnxruntime_src", "[E:onnx", "[W:onnx", "EP Error", "\x1b", "Traceback"):
        assert raw not in done.stdout


def plant(monkeypatch: pytest.MonkeyPatch, target: str, change: Change) -> None:
    """Gives the table of a target a wrong row."""
    tables = copy.deepcopy(capabilities._tables())
    change(tables[target])
    monkeypatch.setattr(capabilities, "_tables", lambda: tables)


def of_three_bits(table: dict[str, Any]) -> None:
    table["kernels"].append({**table["kernels"][0], "bits": 3})


def of_odd_groups(table: dict[str, Any]) -> None:
    table["kernels"][1]["groups"] = [24, 32]


def of_two_bits(table: dict[str, Any]) -> None:
    table["kernels"].append({**table["kernels"][0], "bits": 2})


@pytest.mark.parametrize(
    ("target", "change", "named", "why"),
    [
        ("ort-cpu", of_three_bits, "product, 3 bits, groups of 64", "Only 2b, 4b and 8b"),
        ("ort-cpu", of_odd_groups, "product, 4 bits, groups of 24", "Only block sizes 16"),
        ("qdq", of_two_bits, "product, 2 bits, groups of 32", "the standard has no type"),
    ],
)
def test_a_planted_wrong_row_is_named(
    target: str,
    change: Change,
    named: str,
    why: str,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plant(monkeypatch, target, change)
    assert main(["doctor"]) == 4
    captured = capsys.readouterr()
    assert f"{target}: {named}: refused ({why}" in captured.out
    assert "rows of the table are wrong in this onnxruntime" in captured.out
    assert f"the table of {target} is wrong" in captured.err
    assert "report" in captured.err


def test_a_row_with_other_numbers_is_named_in_json(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(row: Any, group: int, table: Any, *more: Any) -> Any:
        one = row_model(row, group, table, *more)
        if (table.target, row.kind, row.bits) == ("qdq", "convolution", 8):
            object.__setattr__(one, "expected", tuple(-1.1 * it for it in one.expected))
        return one

    monkeypatch.setattr(probing, "row_model", made)
    found = told(capsys, code=4)
    assert not found["ok"]
    assert found["error"]["code"] == "environment"
    assert "convolution, 8 bits, one scale a row: wrong" in found["error"]["message"]
    wrong = [row for row in found["rows"]["qdq"] if row["verdict"] == "wrong"]
    assert [row["kind"] for row in wrong] == ["convolution"]
    assert wrong[0]["error"] > 1


def test_rows_are_listed_and_timed_where_that_is_asked_for(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probing, "_SIZE", 128)
    monkeypatch.setattr(probing, "_SECONDS", 0.002)
    assert main(["doctor", "--probe", "ort-cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (row,) = [line for line in lines if line.startswith("product, 2 bits, groups of 64 ")]
    assert row.split()[6] == "right"
    assert float(row.split()[8]) > 0
    assert row.endswith("0.14")
    assert not any(line.startswith("qdq, row by row") for line in lines)


def test_a_runtime_that_is_missing_comes_with_its_pip_line(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages, "_version", lambda wheel: "")
    found = told(capsys)["packages"]
    assert found["TensorRT"] == {
        "version": "",
        "problem": "not installed: pip install tensorrt",
    }
    assert found["OpenVINO"]["problem"] == "not installed: pip install 'mpqc[openvino]'"
    assert found["ONNX Runtime"]["problem"] == "not installed: pip install onnxruntime"


@pytest.mark.slow
@pytest.mark.ci_sample
def test_a_runtime_that_does_not_load_is_told_too() -> None:
    code = (
        "import sys; sys.modules['onnxruntime'] = None\n"
        "from mpqc.tools.cli import main; sys.exit(main(['doctor']))"
    )
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 4, done.stderr
    assert "ONNX Runtime does not load" in done.stdout
    assert done.stderr.startswith("mpqc: no target works on this machine")


def test_without_any_target_the_doctor_says_so(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capabilities, "_version", lambda wheel: "")
    monkeypatch.setattr(doctor, "_openvino_problem", lambda: None)
    assert main(["doctor"]) == 4
    captured = capsys.readouterr()
    assert "pip install onnxruntime" in captured.out
    assert "no target works on this machine" in captured.err


def test_devices_are_told(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver("13.0", (Gpu("Some GPU", "9.0", 80_000_000_000),))
    monkeypatch.setattr(doctor, "nvidia_driver", lambda: driver)
    assert main(["doctor"]) == 0
    assert "Some GPU (compute capability 9.0, 80.0 GB); the driver" in capsys.readouterr().out
    found = told(capsys)
    assert found["gpus"] == [{"name": "Some GPU", "capability": "9.0", "memory": 80000000000}]
    assert found["cuda"] == "13.0"
