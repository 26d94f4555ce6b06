"""Everything that decides a compilation, checked before any work begins."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from ..backend.onnxruntime.capabilities import load, targets
from ..ir import UsageError
from ..passes.engine.execution.devices import CPU, find_device
from ..passes.engine.pipeline.base import Pass
from .budget import Budget
from .efforts import DEFAULT_EFFORT, effort_defaults
from .option_fields import key_of, resolved, specs, utf8_path
from .options import OBJECTIVES, CompileOptions
from .pass_options import passes_with, read_passes, with_option
from .pipelines import DEFAULT_PRESET, PRESETS, Preset, find_preset
from .recipe import read_recipe

_CPU = "CPUExecutionProvider"
_KERNELS_TAKE = "uint8"  # of ONNX Runtime's own operators on integers
_ROUNDED = ("int8", _KERNELS_TAKE, "fp8")
_ANY_BITS = 4.0  # what a pipeline is checked with where the bits are not known yet


@dataclass(frozen=True)
class CompileSettings:
    """What decides the result.

    Attributes:
        options: What was asked for, without gaps.
        budget: The budget that was asked for.
        passes: The pipeline; None when the preset of the options gives it.
        device: What to compute on: it is there, and works.
    """

    options: CompileOptions
    budget: Budget
    passes: tuple[Pass, ...] | None = None
    device: str = CPU

    @property
    def calibration(self) -> tuple[Path, ...]:
        """Text or array files, or folders of them."""
        return cast("tuple[Path, ...]", self.options.calibration)

    def pipeline(self, bits: float) -> tuple[Pass, ...]:
        """Returns the passes that meet ``bits`` stored bits per weight."""
        passes = self.passes if self.passes is not None else self._preset_passes(bits)
        passes = with_option(passes, "budget", bits, "a budget")
        if self.budget.expand:
            passes = with_option(passes, "expand", True, "a file budget")
        chosen = self.options
        if chosen.latency is not None:
            passes = with_option(passes, "latency", chosen.latency, "a latency")
        if chosen.max_loss is not None:
            passes = with_option(passes, "max_loss", chosen.max_loss, "a bound on loss")
        if chosen.objective != OBJECTIVES[0]:
            passes = with_option(passes, "aim", chosen.objective, "an objective")
        return passes

    def saves_time(self, bits: float) -> bool:
        """Tells whether kernels of integers are offered so as to be quicker than floats."""
        offered = any(
            getattr(one, "integers", "none") != "none" for one in self.pipeline(bits)
        )
        options = self.options
        asked = options.activations in _ROUNDED or options.objective != OBJECTIVES[0]
        quicker = options.latency is not None and options.latency < 1
        return offered and (asked or quicker or self.passes is not None)

    def _preset_passes(self, bits: float) -> tuple[Pass, ...]:
        preset = find_preset(str(self.options.preset))
        _check_target(preset, self.options, self.budget)
        return preset_passes(preset, bits, self.options)

    def lines(self) -> list[str]:
        """Returns the effective settings in words, for the user to see before the start."""
        chosen = self.options
        calibration = ", ".join(self._calibration_files())
        if not calibration:
            calibration = "random noise" if chosen.random_calibration else "default"
        return [
            f"budget {self.budget}, target {chosen.target}, device {self.device},"
            f" seed {chosen.seed}",
            f"calibration: {calibration};"
            f" {chosen.samples} samples of {chosen.sequence_length}",
        ]

    def plain(self) -> dict[str, Any]:
        """Returns the settings as JSON, without paths of this machine."""
        budget = self.budget
        asked = {"bits": budget.bits, "bytes": budget.size, "file": budget.expand}
        recorded = {
            key_of(name): getattr(self.options, name)
            for name, spec in specs(CompileOptions).items()
            if spec.recorded
        }
        return {"budget": asked, **recorded, "calibration": self._calibration_files("name")}

    def _calibration_files(self, part: str = "") -> list[str]:
        return [getattr(one, part) if part else str(one) for one in self.calibration]


def preset_passes(preset: Preset, bits: float, options: CompileOptions) -> tuple[Pass, ...]:
    """Returns a preset's passes for what the options say about them."""
    return preset.passes(
        bits,
        target=options.target,
        outputs=options.outputs,
        activations=_lowered_activations(options),
        integers=integers(options) if preset.takes_integers else "none",
    )


def _lowered_activations(options: CompileOptions) -> str:
    """Returns what the lowering of a target is told that products read."""
    said = options.activations
    return said if said in _ROUNDED and _rounds_activations(options.target) else "none"


def integers(options: CompileOptions) -> str:
    """Returns which kernels of integers a preset is to offer beside others of a target."""
    if not load(options.target).integer_bits:
        return "none"
    if options.activations != "auto":
        return "none" if options.activations == "none" else "quickest"
    is_timed = options.latency is not None or options.objective != OBJECTIVES[0]
    return "beside" if is_timed else "none"


def make_settings(
    given: CompileOptions, passes: tuple[Pass, ...] | None = None
) -> CompileSettings:
    """Merges what the caller gave with a recipe and the defaults.

    The pipeline comes from one place: the caller's preset or passes, or the recipe's.

    Args:
        given: What the caller gave.
        passes: The pipeline, if it is not to be read from the options.

    Raises:
        InputError: The recipe cannot be read.
        MachineError: The device is not there.
        UsageError: A value is impossible, or there are two pipelines.
    """
    budget = Budget.of(given.budget, given.file_budget)
    recipe = {} if given.recipe is None else read_recipe(utf8_path(given.recipe))
    said = _refuse_two_pipelines(given, recipe)
    effort = given.effort or recipe.get("effort", DEFAULT_EFFORT)
    open_ = passes is None and not said
    defaults = effort_defaults(effort, with_preset=open_)
    # What is asked for now stands over a recipe, as for every other option.
    said_now = given.effort is not None
    options = resolved(given, recipe | defaults if said_now else defaults | recipe)
    if passes is None and options.passes is not None:
        _refuse_pass_options(options)
        passes = read_passes(options.passes, budget=budget.bits or _ANY_BITS)
    elif passes is None and options.preset is None:
        options = replace(options, preset=DEFAULT_PRESET)
    settings = CompileSettings(options, budget, passes, find_device(options.device))
    load(options.target)
    made = settings.pipeline(budget.bits or _ANY_BITS)
    if not budget.expand and any(getattr(one, "expand", False) for one in made):
        raise UsageError(
            "a budget also bounds what stays in memory, but expand=true makes that larger",
            hint="give the budget as a file budget, or leave out expand=true",
        )
    return settings


def _refuse_two_pipelines(given: CompileOptions, recipe: dict[str, Any]) -> bool:
    """Returns whether there is a pipeline; refuses two."""
    said = {
        "a preset": given.preset,
        "passes": given.passes,
        "the recipe's preset": recipe.get("preset"),
        "the recipe's pipeline": recipe.get("passes"),
    }
    both = [name for name, value in said.items() if value is not None]
    if len(both) > 1:
        raise UsageError(
            f"{both[0]} and {both[1]} both say what to run", hint="leave out one of the two"
        )
    return bool(both)


def _refuse_pass_options(options: CompileOptions) -> None:
    """Refuses options that a preset would hand on to its passes beside a pipeline."""
    for name, field, lowering in (
        ("outputs", "objective", False),
        ("activations", "activations", True),
    ):
        value = getattr(options, name)
        if value != specs(CompileOptions)[name].default:
            owner = passes_with(field, lowering=lowering)[0]
            raise UsageError(
                f"{name} is an option of {owner} when the pipeline is given",
                hint=f"write {owner}{{{field}={value}}}",
            )


def _check_target(preset: Preset, options: CompileOptions, budget: Budget) -> None:
    """Refuses what the target cannot do with a preset."""
    target = options.target
    if budget.expand and not load(target).expanding:
        raise UsageError(
            f"{target} has no widths that expand at load, so files have none to gain",
            hint="give --budget instead of --file-budget",
        )
    if options.allow_fallback and load(target).provider == _CPU:
        raise UsageError(
            f"{target} runs on the CPU, so nothing can fall back to it",
            hint="leave out --allow-fallback",
        )
    if options.activations in _ROUNDED:
        _check_activations(preset, options)
    if not preset.fits(target):
        able = " or ".join(one for one in targets() if preset.fits(one))
        raise UsageError(
            f"preset {options.preset} has no form for target {target}",
            hint=f"compile it with --target {able}, or choose another preset",
        )


def _check_activations(preset: Preset, options: CompileOptions) -> None:
    """Refuses rounded activations that a target or a preset does not know."""
    target, kind = options.target, options.activations
    known = load(target).activation_types
    if known and kind not in known:
        raise UsageError(
            f"{target} rounds activations to {' or '.join(known)}, not to {kind}",
            hint=f"compile with --activations {known[0]}",
        )
    if known:
        return
    if not load(target).integer_bits:
        able = [one for one in targets() if _rounds_activations(one) or load(one).integer_bits]
        able = [one for one in able if kind in _known_kinds(one)]
        raise UsageError(
            f"{target} takes no quantized activations",
            hint=f"compile with --target {' or '.join(able)}",
        )
    if kind != _KERNELS_TAKE:
        raise UsageError(
            f"{target} rounds activations to {_KERNELS_TAKE}, not to {kind}",
            hint=f"compile with --activations {_KERNELS_TAKE}",
        )
    if not preset.takes_integers:
        able = [name for name, one in PRESETS.items() if one.takes_integers]
        raise UsageError(
            f"preset {options.preset} offers no kernels of integers to {target}",
            hint=f"choose another preset: {', '.join(able)}",
        )


def _known_kinds(target: str) -> tuple[str, ...]:
    """Returns what a target's graphs can round activations to."""
    return load(target).activation_types or (_KERNELS_TAKE,)


def _rounds_activations(target: str) -> bool:
    return bool(load(target).activation_types)
