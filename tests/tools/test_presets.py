"""Presets: pipelines by name, from the command line, from Python and from recipes."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

import mpqc
from mpqc.ir import UsageError
from mpqc.passes.engine.pipeline.spec import parse_passes, print_passes
from mpqc.tools.cli import main
from mpqc.tools.options import CompileOptions
from mpqc.tools.pipelines import PRESETS
from mpqc.tools.settings import make_settings

from .tiny_models import vector_model

NOISE: dict[str, Any] = {"random_calibration": True, "samples": 4}


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("outputs", ["auto", "regression"])
def test_every_preset_is_a_pipeline_for_the_budget(name: str, outputs: str) -> None:
    passes = PRESETS[name].passes(3.25, outputs=outputs)
    text = print_passes(passes)
    assert parse_passes(text) == passes
    assert "budget=3.25" in text
    assert ("objective=regression" in text) == (outputs == "regression")
    assert PRESETS[name].summary


def test_the_default_is_a_preset() -> None:
    plain, named = CompileOptions(budget=4), CompileOptions(budget=4, preset="default")
    assert make_settings(plain).pipeline(4.0) == make_settings(named).pipeline(4.0)


def test_presets_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["presets"]) == 0
    shown = capsys.readouterr().out
    assert main(["presets", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["presets"]
    assert list(listed) == list(PRESETS)
    assert all(name in shown and line in shown for name, line in listed.items())


def test_an_unknown_preset_is_a_usage_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = vector_model(tmp_path / "vector.onnx")
    words = ["compile", str(model), "--budget", "4", "--preset", "unifrom"]
    assert main([*words, "-o", str(tmp_path / "out")]) == 2
    assert "did you mean 'uniform'?" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("given", "recipe", "named"),
    [
        ({"preset": "uniform", "passes": "allocate-bits"}, None, ("a preset", "passes")),
        ({"preset": "uniform"}, 'preset = "default"', ("a preset", "the recipe's preset")),
        ({"preset": "uniform"}, 'pipeline = "allocate-bits"', ("preset", "recipe's pipeline")),
        ({"passes": "allocate-bits"}, 'preset = "uniform"', ("passes", "recipe's preset")),
        ({}, 'preset = "uniform"\npipeline = "allocate-bits"', ("recipe's", "pipeline")),
    ],
)
def test_two_pipelines_are_refused(
    given: dict[str, Any], recipe: str | None, named: tuple[str, str], tmp_path: Path
) -> None:
    path = None
    if recipe is not None:
        path = tmp_path / "recipe.toml"
        path.write_text(recipe)
    with pytest.raises(UsageError) as caught:
        make_settings(CompileOptions(budget=4, recipe=path, **given))
    assert all(one in caught.value.message for one in named)


def test_a_recipe_may_name_a_preset_and_what_outputs_are(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('preset = "uniform"\noutputs = "regression"\n')
    settings = make_settings(CompileOptions(budget=4, recipe=recipe))
    assert settings.pipeline(4.0) == PRESETS["uniform"].passes(4.0, outputs="regression")


@pytest.mark.ort
def test_the_result_says_which_preset_made_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MPQC_CACHE", str(tmp_path / "cache"))
    model = vector_model(tmp_path / "in" / "vector.onnx")
    result = mpqc.compile(model, budget=5, output=tmp_path / "a", preset="uniform", **NOISE)
    assert result.report["settings"]["preset"] == "uniform"
    assert result.report["pipeline"] == print_passes(PRESETS["uniform"].passes(5.0))
    words = shlex.split(result.report["command"])
    assert words[words.index("--preset") + 1] == "uniform"
    assert {row["name"]: list(row["options"]) for row in result.report["units"]} == {
        "first": ["4g64"],
        "second": ["4g64"],
    }
    text = result.report["pipeline"]
    again = mpqc.compile(model, budget=5, output=tmp_path / "b", passes=text, **NOISE)
    words = shlex.split(again.report["command"])
    assert words[words.index("--passes") + 1] == text
    assert (again.output / "model.onnx").read_bytes() == result.model.read_bytes()


@pytest.mark.parametrize(
    ("given", "preset", "samples"),
    [
        ({}, "default", 64),
        ({"effort": "fast"}, "fast", 24),
        ({"effort": "high"}, "default", 512),
        ({"effort": "high", "samples": 16}, "default", 16),
        ({"effort": "fast", "preset": "uniform"}, "uniform", 24),
        ({"effort": "fast", "passes": "normalize,allocate-bits"}, None, 24),
    ],
)
def test_an_effort_decides_what_nobody_else_says(
    given: dict[str, Any], preset: str | None, samples: int
) -> None:
    options = make_settings(CompileOptions(budget=4, **given)).options
    assert (options.preset, options.samples) == (preset, samples)


def test_a_recipe_may_name_an_effort_and_overrides_it(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('effort = "fast"\nsamples = 30\n')
    options = make_settings(CompileOptions(budget=4, recipe=recipe)).options
    assert (options.effort, options.preset, options.samples) == ("fast", "fast", 30)
    options = make_settings(CompileOptions(budget=4, recipe=recipe, effort="high")).options
    assert (options.preset, options.samples) == ("default", 512), "what is asked for now"
    with pytest.raises(UsageError, match="effort"):
        make_settings(CompileOptions(budget=4, effort="enormous"))
