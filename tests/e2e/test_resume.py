"""The same compile gives the same bytes, also when it goes on from a dump."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import mpqc
from mpqc.tools.resume import opt
from mpqc.tools.watch import Watch

from .models import (
    LENGTH,
    VOCABULARY,
    Convolutions,
    Language,
    by_torchscript,
    with_control_flow,
)

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.ort, pytest.mark.timeout(300)]

NOISE: dict[str, Any] = {"random_calibration": True, "samples": 4, "sequence_length": LENGTH}


def contents(folder: Path) -> dict[str, object]:
    """Returns every file of a result; of mpqc.json, what is not a time."""
    files: dict[str, object] = {
        path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()
    }
    facts = json.loads((folder / "mpqc.json").read_text())
    del facts["timings"]
    return files | {"mpqc.json": facts}


def language(folder: Path) -> Path:
    torch.manual_seed(0)
    ids = torch.randint(VOCABULARY, (2, LENGTH))
    return by_torchscript(Language(), ids, folder / "language.onnx", 17)


def convolutions(folder: Path) -> Path:
    torch.manual_seed(0)
    images = torch.randn(2, 3, 16, 16)
    return by_torchscript(Convolutions(), images, folder / "images.onnx", 17)


def control_flow(folder: Path) -> Path:
    return with_control_flow(folder / "flow.onnx")


SLOW = (pytest.mark.slow, pytest.mark.ci_sample)
MODELS = [
    pytest.param(language, 5.3, id="language"),
    pytest.param(convolutions, 7.5, id="convolutions", marks=SLOW),
    pytest.param(control_flow, 24, id="control-flow", marks=SLOW),
]


@pytest.mark.parametrize(("make", "budget"), MODELS)
def test_every_dump_resumes_to_the_same_bytes(
    make: Any, budget: float, tmp_path: Path
) -> None:
    dumps = tmp_path / "dumps"
    whole = mpqc.compile(
        make(tmp_path),
        budget=budget,
        output=tmp_path / "out",
        dump_after_each=dumps,
        cache=tmp_path / "cache",
        kernels="always" if make is language else "auto",
        latency=100,  # a model this small is quickest with a single class of rows
        **NOISE,
    )
    assert make is not language or whole.report["passes"]["fold-permutations"]["folded"]
    wanted = contents(whole.output)
    found = sorted(dumps.glob("[0-9]*.onnx"))
    assert len(found) >= len(whole.seconds.keys() - {"validation"})
    for dump in found:
        resumed = opt(dump, output=tmp_path / f"from-{dump.stem}")
        assert resumed.output is not None
        assert contents(resumed.output) == wanted, dump.name


def test_dumps_of_a_resumed_run_resume_too(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    whole = mpqc.compile(
        language(tmp_path),
        budget=5.3,
        output=tmp_path / "out",
        dump_after_each=first,
        cache=tmp_path / "cache",
        **NOISE,
    )
    (start,) = first.glob("*_annotate-sensitivity.onnx")
    opt(start, watch=Watch(dump_after_each=second))
    (rounded,) = second.glob("*_quantize-weights.onnx")
    resumed = opt(rounded, output=tmp_path / "again")
    assert resumed.output is not None
    assert contents(resumed.output) == contents(whole.output)


@pytest.mark.parametrize(("make", "budget"), MODELS)
def test_a_warm_cache_changes_no_byte(make: Any, budget: float, tmp_path: Path) -> None:
    model = make(tmp_path)
    caches = {"cold": "first", "other": "second", "warm": "first"}
    found = [
        mpqc.compile(
            model, budget=budget, output=tmp_path / name, cache=tmp_path / cache, **NOISE
        )
        for name, cache in caches.items()
    ]
    cold, other, warm = (contents(one.output) for one in found)
    assert cold == other
    assert cold == warm
    assert found[2].report["timings"]["calibrate reused"] is True
    assert found[0].report["timings"]["calibrate reused"] is False
