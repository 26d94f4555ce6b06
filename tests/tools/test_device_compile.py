"""A whole compilation on a pretended accelerator."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import mpqc
from mpqc.tools import settings

from ..pretended import DEVICE, pretending
from .tiny_models import language_folder

pytestmark = [pytest.mark.ort, pytest.mark.slow, pytest.mark.ci_sample]


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("one_thread")
def test_the_result_is_as_good_as_the_cpu_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = language_folder(tmp_path / "model")
    text = tmp_path / "text.txt"
    text.write_text("Some words to read, and some more of them.\n" * 40)
    found = {}
    for device in ("cpu", DEVICE):
        monkeypatch.setattr(settings, "find_device", lambda asked, device=device: device)
        with pretending() as pretended:
            made = mpqc.compile(
                model,
                budget=4.5,
                calibration=text,
                samples=8,
                sequence_length=24,
                output=tmp_path / device,
                cache=tmp_path / f"cache-{device}",
            )
        assert bool(pretended.calls["aten::mm"]) == (device == DEVICE)
        facts = json.loads((tmp_path / device / "mpqc.json").read_text())
        assert facts["settings"]["computed_on"] == device
        assert facts["settings"]["device"] == "auto"
        assert "--device auto" in facts["command"]
        found[device] = made
    assert found["cpu"].got == found[DEVICE].got
    assert found[DEVICE].measured["kl"] == pytest.approx(found["cpu"].measured["kl"], rel=0.02)
