"""The pass that CONTRIBUTING.md tells newcomers to copy, and its golden case, really work."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from mpqc.ir import UsageError, quantizable
from mpqc.passes.engine.pipeline import registry
from mpqc.passes.engine.pipeline.registry import pass_class
from mpqc.passes.engine.pipeline.spec import parse_passes, print_passes

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()


def load(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def block(start: str) -> str:
    """The indented or fenced block of CONTRIBUTING.md that begins with ``start``."""
    found = re.search(rf"```\w+\n({re.escape(start)}.*?)```", TEXT, re.DOTALL)
    assert found, f"CONTRIBUTING.md has lost the block {start!r}"
    return found.group(1)


@pytest.fixture(scope="module", autouse=True)
def _example(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The example as if it stood in passes/; once, since it claims a key for its note."""
    path = tmp_path_factory.mktemp("passes") / "clip_weights.py"
    path.write_text(block('"""clip-weights'))
    load("mpqc.passes.clip_weights", path)


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The example's line in the registry."""
    line = block('    "clip_weights').strip().rstrip(",").strip('"')
    monkeypatch.setitem(registry._BY_NAME, "clip-weights", line)


def test_golden_case_holds(tmp_path: Path) -> None:
    golden = load("golden_of_contributing", ROOT / "tests/passes/test_golden.py")
    path = tmp_path / "far_out.txt"
    path.write_text(block("// The weights"))
    case = golden.read_case(path)
    model, context = golden.build_model(case), golden.build_context(case, tmp_path)
    (before,) = (unit.matrix() for unit in quantizable(model))
    assert golden.come_out(case, model, context) == case.expected
    (after,) = (unit.matrix() for unit in quantizable(model))
    clipped = np.count_nonzero(before != after)
    assert f"#clipped{{unit=w, weights={clipped}}}" in case.expected


def test_example_reads_as_it_prints() -> None:
    text = "clip-weights{deviations=4.0},clip-weights"
    assert print_passes(parse_passes(text)) == text
    assert pass_class("clip-weights").__name__ == "ClipWeights"


def test_example_refuses_nonsense() -> None:
    with pytest.raises(UsageError, match="above 0"):
        parse_passes("clip-weights{deviations=-1.0}")
