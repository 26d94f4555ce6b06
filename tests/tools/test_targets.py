"""mpqc targets: what can run where, and how that is known."""

from __future__ import annotations

import json

import pytest

from mpqc.backend import packages
from mpqc.backend.onnxruntime import capabilities
from mpqc.tools.cli import main

pytestmark = pytest.mark.ort
Capture = pytest.CaptureFixture[str]


def shown(capsys: Capture, *words: str) -> list[str]:
    assert main(["targets", *words]) == 0
    return capsys.readouterr().out.splitlines()


def test_every_target_has_a_line(capsys: Capture) -> None:
    head, *lines = shown(capsys)
    assert head.split()[:2] == ["target", "runtime"]
    told = {line.split()[0]: line for line in lines[: len(capabilities.targets())]}
    assert set(told) == set(capabilities.targets())
    assert "onnxruntime 1.31 or newer" in told["ort-cpu"]
    assert "CPUExecutionProvider" in told["ort-cpu"]
    assert told["ort-cpu"].endswith("ready")
    assert "openvino 2026.4 or newer" in told["qdq"]


def test_a_target_fills_one_screen(capsys: Capture) -> None:
    lines = shown(capsys, "ort-cpu")
    assert len(lines) < 50
    products = [line.split() for line in lines if line.startswith("product ")]
    quick = next(one for one in products if one[1:3] == ["2", "64"])
    slow = next(one for one in products if one[1:3] == ["2", "256"])
    assert quick[3:6] == ["yes", "yes", "0.14"]
    assert slow[3:6] == ["no", "no", "12.9"]
    assert any(line.startswith("[1] probed 2026-11 on onnxruntime") for line in lines)


def test_what_was_only_read_names_its_source(capsys: Capture) -> None:
    lines = shown(capsys, "ort-cuda")
    known = [line for line in lines if line.startswith("[")]
    assert known
    assert all("] read 2026-11 in https://" in line for line in known)
    products = [line for line in lines if line.startswith("product ")]
    multiples = {"2": "rows in 128s", "4": "rows in 64s", "8": "rows in 32s"}
    assert {line.split()[1] for line in products} == set(multiples)
    assert all(multiples[line.split()[1]] in line for line in products)


def test_json_has_every_row_with_its_evidence(capsys: Capture) -> None:
    assert main(["targets", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"]
    assert [one["target"] for one in found["targets"]] == list(capabilities.targets())
    for target in found["targets"]:
        for row in target["rows"]:
            assert row["when"]
            assert ("on" in row) == row["probed"] != ("source" in row)
    (qdq,) = [one for one in found["targets"] if one["target"] == "qdq"]
    assert {"kind": "product", "bits": 8, "groups": ["row"]}.items() <= qdq["rows"][3].items()


@pytest.mark.parametrize(
    ("name", "hint"), [("ort-cup", "did you mean 'ort-cpu'?"), ("nonsense", "known: ort-cpu")]
)
def test_a_target_that_does_not_exist(name: str, hint: str, capsys: Capture) -> None:
    for words in (["targets", name], ["doctor", "--probe", name]):
        assert main(words) == 2
        told = capsys.readouterr().err
        assert f"unknown target '{name}'" in told
        assert hint in told


def test_without_the_runtime_the_line_says_what_to_install(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capabilities, "_version", lambda wheel: "")
    lines = shown(capsys)
    count = len(capabilities.targets())
    assert all("pip install onnxruntime" in line for line in lines[1 : count + 1])
    assert packages.PACKAGES[0].problem() is None
