"""The parts of the demo that need no model."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from mpqc.ir import MachineError
from mpqc.tools import demo
from mpqc.tools.api import CompileResult
from mpqc.tools.evaluate import Evaluation


def test_halves_share_nothing_and_lose_nothing(tmp_path: Path) -> None:
    from pydoc_data.topics import topics

    halves = [
        path.read_text(encoding="utf-8") for path in demo.write_halves(tmp_path / "text")
    ]
    assert "".join(halves) == "\n".join(topics[name] for name in sorted(topics))
    assert abs(len(halves[0]) - len(halves[1])) < 1000
    assert halves[1].startswith("\n")


def test_refusal_is_one_line_and_a_hint(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def refuse(output: Path, setting: demo.Setting) -> None:
        assert setting is demo.LIGHT
        raise MachineError(f"no space left in {output.name}", hint="free some")

    monkeypatch.setattr(demo, "run", refuse)
    assert demo.main(["-o", str(tmp_path / "out")]) == 4
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == ["mpqc: no space left in out", "      free some"]


def test_full_demo_is_the_default_method(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[demo.Setting] = []
    monkeypatch.setattr(demo, "run", lambda output, setting: chosen.append(setting))
    assert demo.main(["--full"]) == 0
    (setting,) = chosen
    assert (setting.preset, setting.samples, setting.sequence_length) == ("default", 64, 512)


@pytest.mark.parametrize("setting", [demo.LIGHT, demo.FULL])
def test_table_names_its_setting(
    setting: demo.Setting, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = Evaluation(
        samples=3,
        bits=3.499,
        whole_file_bits=3.6,
        resident_bits=4.4,
        original_bytes=540_000_000,
        result_bytes=60_000_000,
        kl=0.2,
        top1=0.75,
        original_perplexity=20.0,
        result_perplexity=25.0,
        tokens=1533,
        relative_error=None,
        cosine=None,
        lowest_cosine=None,
    )
    result = SimpleNamespace(asked=3.5)
    demo.print_table(cast(CompileResult, result), measured, setting, seconds=90.0)
    table = capsys.readouterr().out
    assert setting.remark in table.replace("\n", " ")
    assert f"3 x {setting.sequence_length} tokens" in table
    for figure in (setting.preset, "3.500", "3.499", "0.200", "75.0%", "9.0x", "1.5 min"):
        assert figure in table
