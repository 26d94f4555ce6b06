"""Which settings of ``annotate-sensitivity`` make sense; no option is ignored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING

from ...ir import UsageError
from ...ir.text_form import did_you_mean
from .metric import METRICS

if TYPE_CHECKING:
    from .annotate_sensitivity import AnnotateSensitivity

_WORDS: Mapping[str, tuple[str, ...]] = {
    "variant": ("plain", "pwcca", "svcca"),
    "form": ("gradient", "perturbation"),
    "labels": ("model", "text"),
}
_LEAST: Mapping[str, int] = {"samples": 0, "units": 0, "window": 0, "seeds": 1}


def check_settings(settings: AnnotateSensitivity) -> None:
    """Refuses what does not exist, what is out of range, and what would be ignored.

    Raises:
        UsageError: In these cases.
    """
    if settings.metric not in METRICS:
        hint = did_you_mean(settings.metric, METRICS)
        raise UsageError(f"annotate-sensitivity has no metric {settings.metric!r}", hint=hint)
    for name, known in _WORDS.items():
        word = getattr(settings, name)
        if word not in known:
            raise UsageError(f"no {name} {word!r}", hint=did_you_mean(word, known))
    for name, least in _LEAST.items():
        if getattr(settings, name) < least:
            raise UsageError(f"{name} must be at least {least}, not {getattr(settings, name)}")
    rising = all(a < b for a, b in zip(settings.keep, settings.keep[1:], strict=False))
    if not rising or any(count < 1 for count in settings.keep):
        raise UsageError("numbers of channels to keep have to rise, like keep=[8, 32]")
    if not 0 < settings.sparsity < 1:
        raise UsageError(f"sparsity must be between 0 and 1, not {settings.sparsity}")
    if not 0 < settings.scale <= 1:
        raise UsageError(f"scale must be between 0 and 1, not {settings.scale}")
    _check_ignored(settings)


def _check_ignored(settings: AnnotateSensitivity) -> None:
    takes = METRICS[settings.metric].takes
    special = frozenset[str]().union(*(one.takes for one in METRICS.values()))
    given = {
        field.name
        for field in fields(settings)
        if getattr(settings, field.name) != field.default
    }
    for name in sorted(given & special - takes):
        others = [one for one, metric in METRICS.items() if name in metric.takes]
        raise UsageError(
            f"annotate-sensitivity{{metric={settings.metric}}} has no use for {name}",
            hint=f"{name} belongs to metric={' and metric='.join(others)}",
        )
    if settings.form == "gradient" and "seeds" in given:
        raise UsageError(
            "form=gradient draws no noise, so it has no use for seeds",
            hint="use form=perturbation, or leave seeds out",
        )
