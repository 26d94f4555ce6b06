"""Everything that decides a compilation, checked before any work begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..ir import UsageError
from ..ir.text_form import did_you_mean, parse_records, print_records
from .budget import Budget
from .pipelines import OBJECTIVES, find_preset
from .recipe import Recipe, read_recipe

DEFAULTS: dict[str, Any] = {
    "target": "ort-cpu",
    "samples": 64,
    "sequence_length": 512,
    "objective": "auto",
    "activations": "none",
    "seed": 0,
}
DEFAULT_PRESET = "default"
ACTIVATIONS = ("none", "int8", "uint8")
STANDARD_LOWERING = "insert-qdq"
_PACKED_LOWERING = "lower-matmul-nbits"
# Passes with a budget, and those that say whether weights may grow in memory.
_ALLOCATING = ("allocate-bits", "allocate-channels")
_OFFERING = ("annotate-sensitivity", "allocate-channels")
_MOST = {"samples": 100_000, "sequence_length": 1 << 20, "seed": 1 << 62}


@dataclass(frozen=True)
class CompileSettings:
    """What decides the result, and nothing else.

    Attributes:
        budget: What was asked for.
        target: What the result shall run on.
        samples: Calibration samples.
        sequence_length: Tokens in a sample.
        objective: What the sweeps differentiate: ``auto``, ``logits`` or ``regression``.
        activations: What products of INT8 weights read: ``none`` (floats), ``int8`` or
            ``uint8``.
        seed: Seed of every random choice.
        random_calibration: Whether noise may stand in for samples.
        calibration: Text or array files, or folders of them.
        preset: Name of the pipeline; None when ``passes`` gives it.
        passes: The pipeline as text; None when ``preset`` names it.
    """

    budget: Budget
    target: str
    samples: int
    sequence_length: int
    objective: str
    activations: str
    seed: int
    random_calibration: bool
    calibration: tuple[Path, ...]
    preset: str | None
    passes: str | None

    def pipeline(self, bits: float) -> str:
        """Returns the pipeline that meets ``bits`` stored bits per weight, as text."""
        if self.passes is not None:
            text = with_option(self.passes, _ALLOCATING, "budget", bits)
        else:
            assert self.preset is not None
            text = self._for_target(find_preset(self.preset)(bits, self.objective))
        if not self.budget.expand:
            return text
        return with_option(text, _OFFERING, "expand", True)

    def _for_target(self, passes: str) -> str:
        """Returns a preset's pipeline with the lowering of the target."""
        from ..backend.onnxruntime.capabilities import load

        table = load(self.target)
        lowering = table.lowering
        if self.budget.expand and not table.expanding:
            raise UsageError(
                f"{self.target} has no widths that expand at load, so files have none to gain",
                hint="give --budget instead of --file-budget",
            )
        if self.activations != "none" and lowering != STANDARD_LOWERING:
            raise UsageError(
                f"{self.target} takes no quantized activations",
                hint="compile with --target qdq",
            )
        if lowering != _PACKED_LOWERING and _PACKED_LOWERING not in passes:
            raise UsageError(
                f"preset {self.preset} has no form for target {self.target}",
                hint="compile it with --target ort-cpu, or choose another preset",
            )
        return with_lowering(passes, lowering, self.activations)

    def lines(self) -> list[str]:
        """Returns the effective settings in words, for the user to see before the start."""
        calibration = ", ".join(str(path) for path in self.calibration)
        if not calibration:
            calibration = "random noise" if self.random_calibration else "default"
        return [
            f"budget {self.budget}, target {self.target}, seed {self.seed}",
            f"calibration: {calibration}; {self.samples} samples of {self.sequence_length}",
        ]

    def plain(self) -> dict[str, Any]:
        """Returns the settings as JSON, without paths of this machine."""
        return {
            "budget": {
                "bits": self.budget.bits,
                "bytes": self.budget.size,
                "file": self.budget.expand,
            },
            "target": self.target,
            "samples": self.samples,
            "sequence_length": self.sequence_length,
            "objective": self.objective,
            "activations": self.activations,
            "preset": self.preset,
            "seed": self.seed,
            "random_calibration": self.random_calibration,
            "calibration": [path.name for path in self.calibration],
        }


def make_settings(
    budget: float | str | None,
    file_budget: float | str | None = None,
    *,
    recipe: Path | None = None,
    preset: str | None = None,
    passes: str | None = None,
    calibration: Sequence[Path | str] = (),
    random_calibration: bool = False,
    **given: Any,
) -> CompileSettings:
    """Merges what the caller gave (None: nothing) with a recipe and the defaults.

    The pipeline comes from one place: the caller's preset or passes, or the recipe's.

    Raises:
        InputError: The recipe cannot be read.
        UsageError: A value is impossible, or there are two pipelines.
    """
    parsed = Budget.of(budget, file_budget)
    found = read_recipe(recipe) if recipe is not None else Recipe(None, None, {})
    named, pipeline = _only_pipeline(preset, passes, found)
    chosen = {
        **DEFAULTS,
        **found.defaults,
        **{k: v for k, v in given.items() if v is not None},
    }
    unknown = sorted(chosen.keys() - DEFAULTS.keys())
    if unknown:
        raise UsageError(
            f"unknown option {unknown[0]!r}", hint=did_you_mean(unknown[0], DEFAULTS)
        )
    _check_values(chosen)
    if pipeline is not None and chosen["objective"] != "auto":
        raise UsageError(
            "the objective is an option of calibrate when the pipeline is given",
            hint=f"write calibrate{{objective={chosen['objective']}}}",
        )
    if pipeline is not None and chosen["activations"] != "none":
        raise UsageError(
            "quantized activations are an option of insert-qdq when the pipeline is given",
            hint=f"write insert-qdq{{activations={chosen['activations']}}}",
        )
    settings = CompileSettings(
        budget=parsed,
        calibration=tuple(Path(one) for one in calibration),
        random_calibration=random_calibration,
        preset=named,
        passes=pipeline,
        **chosen,
    )
    _check_pipeline(settings)
    return settings


def _only_pipeline(
    preset: str | None, passes: str | None, recipe: Recipe
) -> tuple[str | None, str | None]:
    """Returns the name of the pipeline or its text, whichever was given.

    Raises:
        UsageError: It was given twice.
    """
    given = {
        "a preset": preset,
        "passes": passes,
        "the recipe's preset": recipe.preset,
        "the recipe's pipeline": recipe.pipeline,
    }
    found = [name for name, value in given.items() if value is not None]
    if len(found) > 1:
        raise UsageError(
            f"{found[0]} and {found[1]} both say what to run", hint="leave out one of the two"
        )
    text = passes if passes is not None else recipe.pipeline
    if text is not None:
        return None, text
    name = preset if preset is not None else recipe.preset
    return (name if name is not None else DEFAULT_PRESET), None


def _check_values(chosen: dict[str, Any]) -> None:
    for name, most in _MOST.items():
        value, least = chosen[name], 0 if name == "seed" else 1
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            shown = name.replace("_", "-")
            raise UsageError(
                f"{shown} must be a whole number from {least} to {most}, not {value}"
            )
    for name, known in (("objective", OBJECTIVES), ("activations", ACTIVATIONS)):
        if chosen[name] not in known:
            raise UsageError(
                f"unknown {name} {chosen[name]!r}",
                hint=did_you_mean(str(chosen[name]), known),
            )


def _check_pipeline(settings: CompileSettings) -> None:
    """Refuses unknown targets, passes and options now, not after an hour."""
    from ..backend.onnxruntime.capabilities import load
    from ..passes.engine.pipeline.pipeline import Pipeline

    load(settings.target)
    text = settings.pipeline(settings.budget.bits or 4.0)
    Pipeline.parse(text)
    expands = any(options.get("expand") is True for _, options in parse_records(text))
    if expands and not settings.budget.expand:
        raise UsageError(
            "a budget also bounds what stays in memory, but expand=true makes that larger",
            hint="give the budget as a file budget, or leave out expand=true",
        )


def with_option(passes: str, changed: tuple[str, ...], key: str, value: float | bool) -> str:
    """Returns a pipeline in which an option of the passes ``changed`` has a value.

    Raises:
        UsageError: The text is no pipeline, or has no such pass.
    """
    records = parse_records(passes)
    if not any(name in changed for name, _ in records):
        what = "a file budget" if key == "expand" else "a budget"
        raise UsageError(
            f"the pipeline has no {changed[0]}, so {what} means nothing to it",
            hint=f"add {' or '.join(changed)}; run: mpqc passes",
        )
    return print_records(
        [
            (name, {**options, key: value} if name in changed else options)
            for name, options in records
        ]
    )


def with_lowering(passes: str, lowering: str, activations: str) -> str:
    """Returns a preset's pipeline for a target that wants another pass for its graphs.

    Args:
        passes: A pipeline that ends in ``lower-matmul-nbits``.
        lowering: The pass that shall stand there.
        activations: What ``insert-qdq`` does with activations.
    """
    if lowering == _PACKED_LOWERING:
        return passes
    changed: list[tuple[str, dict[str, Any]]] = []
    for name, options in parse_records(passes):
        if name == _PACKED_LOWERING:
            chosen = {} if activations == "none" else {"activations": activations}
            changed.append((lowering, chosen))
        elif name == "annotate-sensitivity":  # these graphs keep no channels apart
            changed.append((name, {k: v for k, v in options.items() if k != "keep"}))
        elif name == "rewrite-crossquant" and activations != "none":
            # The search assumes what insert-qdq will do: one scale for a whole activation.
            changed.append((name, {**options, "activations": "tensor"}))
        else:
            changed.append((name, options))
        if name == "normalize":
            changed.append(("raise-opset", {}))
    return print_records(changed)
