"""The parts of the demo that need no model."""

from __future__ import annotations

from pathlib import Path

import pytest

from mpqc.ir import MachineError
from mpqc.tools import demo


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
    def refuse(output: Path) -> None:
        raise MachineError(f"no space left in {output.name}", hint="free some")

    monkeypatch.setattr(demo, "run", refuse)
    assert demo.main(["-o", str(tmp_path / "out")]) == 4
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == ["mpqc: no space left in out", "      free some"]
