"""A short campaign with fixed cases, and every input that once broke mpqc."""

from __future__ import annotations

from pathlib import Path

import pytest

from . import campaign, worker

FOUND = sorted(path for path in Path(__file__).parent.glob("cases/*/*") if path.is_file())
_CASES = 40


@pytest.mark.ort
def test_nothing_but_our_own_errors(tmp_path: Path) -> None:
    faults = campaign.run(tmp_path, cases=_CASES)
    assert not faults


@pytest.mark.ort
@pytest.mark.timeout(120)
@pytest.mark.parametrize("path", FOUND, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_what_was_found_stays_mended(path: Path) -> None:
    assert "fault" not in worker.drive(path.parent.name, path.read_bytes())
