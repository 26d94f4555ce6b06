"""The work of ``rewrite-crossquant`` on a whole model: look, choose, fold, count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from ...ir import (
    ArrayStore,
    BitAllocation,
    ColumnScales,
    InputError,
    QuantSpec,
    Sensitivity,
    Unit,
    annotate,
    drop_note,
    quantizable,
)
from ..engine.emission.emitter import Names
from ..engine.execution.parallel import for_each
from ..engine.pipeline.base import PassContext
from ..engine.statistics.moments import rounding_variance
from ..engine.statistics.moved import read_moved, replace_moved
from .emulation import emulate
from .explicit import remove_unused, with_factors
from .folding import by_class, consumed, fold
from .kernels import Kernel, kernel_facts, kernel_of
from .observation import Widths, observe
from .search import ALPHAS, BETAS, Deployed, Magnitudes, Scales, peaks_of, search
from .sites import Closed, Site, find_sites

PAPER_ALPHA = 0.15  # what kernels are counted for where every activation has its own
_NAME = "rewrite-crossquant"
Seen = Mapping[ir.Value, torch.Tensor]


@dataclass(frozen=True)
class FoldSettings:
    """How column scales are chosen and where they may go; see ``RewriteCrossquant``.

    Attributes:
        mode: ``fold`` or ``dynamic``.
        alpha: Share of the token in the step, or ``search``.
        beta: Power of the weights' own magnitudes, or ``search``.
        samples: Number of calibration samples to use.
        explicit: Whether activations may be divided at run time.
        cache: Whether scales may reach the key-value cache.
        least: Share of an activation's predicted loss that a search must take away.
        optional: Whether a model without a place for a scale passes.
    """

    mode: str
    alpha: float | str
    beta: float | str
    samples: int
    explicit: bool
    cache: bool
    least: float
    optional: bool


@dataclass
class _Found:
    """The content of the report.

    Attributes:
        scaled: The chosen scale of each site.
        plain: Sites at which nothing was better than no scales.
        kernels: What rounding does to every activation.
    """

    scaled: dict[str, dict[str, Any]] = field(default_factory=dict)
    plain: dict[str, list[str]] = field(default_factory=dict)
    kernels: list[Kernel] = field(default_factory=list)


def fold_all(
    model: ir.Model, settings: FoldSettings, deployed: Deployed, context: PassContext
) -> bool:
    """Folds column scales wherever a producer can take them; returns whether any were.

    Raises:
        InputError: There is no such place, there is nothing else to do either, and something
            has to be done.
    """
    added = []
    sites, closed = find_sites(model, cache=settings.cache)
    if settings.explicit:
        added = with_factors(model, closed)
        sites, closed = find_sites(model, cache=settings.cache)
    if not sites and settings.mode == "fold" and not settings.optional:
        raise _nothing(closed)
    work, found = _Folding(model, settings, deployed, context), _Found()
    if context.calibration is None:
        work.unseen(sites, found)
    else:
        work.seen(sites, closed, found)
    remove_unused(model, added)
    context.report[_NAME] = {
        "mode": settings.mode,
        "scaled": found.scaled,
        "better_plain": found.plain,
        "closed": {str(one.activation.name): one.why for one in closed},
        "kernels": kernel_facts(found.kernels),
    }
    return bool(found.scaled)


def _nothing(closed: Sequence[Closed]) -> InputError:
    why = f": {closed[0].activation.name!r}: {closed[0].why}" if closed else ""
    return InputError(
        f"no producer in this model can take column scales{why}",
        hint="explicit=true divides activations at run time",
    )


@dataclass
class _Folding:
    """Chooses and folds the scales of sites."""

    model: ir.Model
    settings: FoldSettings
    deployed: Deployed
    context: PassContext

    def __post_init__(self) -> None:
        self.names = Names(self.model)
        searched = "search" in (self.settings.alpha, self.settings.beta)
        self.searched = searched
        given = self.settings.alpha, self.settings.beta
        self.alphas = ALPHAS if given[0] == "search" else (float(given[0]),)
        self.betas = BETAS if given[1] == "search" else (float(given[1]),)

    def unseen(self, sites: Sequence[Site], found: _Found) -> None:
        """Folds fixed scales without looking at activations."""
        if self.searched:
            next(observe(self.model, [], 1, self.context), None)  # says what is missing
        for site in sites:
            magnitudes = Magnitudes.of(site, self.context.arrays)
            factors = magnitudes.factors(self.alphas[0], self.betas[0], self.deployed.exact)
            self._fold(site, Scales(factors, self.alphas[0], self.betas[0], 0.0, 0.0), found)

    def seen(self, sites: Sequence[Site], closed: Sequence[Closed], found: _Found) -> None:
        """Looks at activations, a few at a time, chooses their scales and folds them."""
        wanted = [{value: len(c) for value, c in site.activations} for site in sites]
        wanted += [_widths(one) for one in closed if one.units]
        for part in observe(self.model, wanted, self.settings.samples, self.context):
            here = [site for site in sites if site.activations[0][0] in part]
            choose = partial(self._choose, part)
            scales = for_each(
                choose,
                here,
                self.context.progress,
                "choosing column scales",
                device=self.context.device,
            )
            for site, chosen in zip(here, scales, strict=True):
                self._count(site, chosen, part, found)
                self._fold_seen(site, chosen, part, found)
            rest = [one for one in closed if one.activation in part]
            found.kernels += [self._count_closed(one, part) for one in rest]

    def _choose(self, part: Seen, site: Site) -> Scales:
        return search(
            site,
            part,
            self.context.arrays,
            self.deployed,
            alphas=self.alphas,
            betas=self.betas,
            identity=self.searched,
            least=self.settings.least,
            device=self.context.device,
        )

    def _fold_seen(self, site: Site, chosen: Scales, part: Seen, found: _Found) -> None:
        """Folds, and says how the kernels' rounding of activations has changed."""
        before = {unit.name: _variances(unit, self.context.arrays) for unit in consumed(site)}
        self._fold(site, chosen, found)
        for each in site.consumers:
            assert each.unit is not None
            factors = torch.from_numpy(by_class(chosen.factors, each.classes))
            for at, variance in before[each.unit.name].items():
                x = part[each.unit.uses[at].activation]
                ratio = _ratio(x, factors)
                replace_moved(
                    each.unit, self.context.arrays, at, "activation", variance * ratio
                )

    def _fold(self, site: Site, chosen: Scales, found: _Found) -> None:
        units = consumed(site)
        if chosen.is_identity:
            found.plain[site.name] = [unit.name for unit in units]
            return
        fold(site, chosen.factors, self.context.arrays, self.names)
        for unit in units:
            for kind in (Sensitivity, BitAllocation, QuantSpec):
                drop_note(unit.notes, kind)
            note = ColumnScales(unit.name, site.name, chosen.alpha, chosen.beta)
            annotate(unit.notes, note)
        found.scaled[site.name] = {
            "units": [unit.name for unit in units],
            "into": [part.unit.name for part in site.producers if part.unit is not None],
            "alpha": chosen.alpha,
            "beta": chosen.beta,
            "predicted": chosen.cost,
            "predicted_plain": chosen.plain,
        }

    def _count(self, site: Site, chosen: Scales, part: Seen, found: _Found) -> None:
        alpha = PAPER_ALPHA if self.searched else self.alphas[0]
        for value, classes in site.activations:
            peaks = _peaks(value, consumed(site), self.context.arrays)
            factors = torch.from_numpy(by_class(chosen.factors, classes))
            name = str(value.name)
            found.kernels.append(kernel_of(name, part[value], peaks, alpha, 8, factors))

    def _count_closed(self, one: Closed, part: Seen) -> Kernel:
        alpha = PAPER_ALPHA if self.searched else self.alphas[0]
        x = part[one.activation]
        peaks = _peaks(one.activation, one.units, self.context.arrays)
        name = str(one.activation.name)
        return kernel_of(name, x, peaks, alpha, 8, torch.ones(x.shape[1]))


def _widths(one: Closed) -> Widths:
    return {one.activation: one.units[0].shape[1]}


def _peaks(value: ir.Value, units: Sequence[Unit], arrays: ArrayStore) -> torch.Tensor:
    """Returns the largest magnitudes of an activation's columns, as calibration saw them."""
    found = [
        peaks_of(unit, arrays)
        for unit in units
        if any(use.activation is value for use in unit.uses if use.kind == "product")
    ]
    return torch.from_numpy(np.max(found, axis=0))


def _variances(unit: Unit, arrays: ArrayStore) -> dict[int, np.ndarray]:
    """Returns, by use, the effect of the kernels' rounding of activations on each column."""
    return {
        at: read_moved(unit, arrays, at, "activation")
        for at, use in enumerate(unit.uses)
        if use.kind == "product"
    }


def _ratio(x: torch.Tensor, factors: torch.Tensor) -> np.ndarray:
    """Returns how the variance of rounding grows when the columns of ``x`` are divided."""
    even = torch.ones(len(x))
    after, before = rounding_variance(x / factors, even), rounding_variance(x, even)
    return (after / before.clamp_min(1e-30)).numpy()


def emulate_all(
    model: ir.Model, alpha: float, bits: int, samples: int, context: PassContext
) -> bool:
    """Rounds the activations of every unit in the graph itself.

    Raises:
        InputError: No unit multiplies an activation.
    """
    readers: dict[ir.Value, list[ir.Node]] = {}
    units: dict[ir.Value, list[Unit]] = {}
    for unit in quantizable(model):
        for use in unit.uses:
            if use.kind == "product":
                readers.setdefault(use.activation, []).append(use.node)
                units.setdefault(use.activation, []).append(unit)
    if not readers:
        raise InputError("no unit of this model multiplies an activation")
    widths = {value: found[0].shape[1] for value, found in units.items()}
    kernels: list[Kernel] = []
    if context.calibration is not None:
        for part in observe(model, [{k: v} for k, v in widths.items()], samples, context):
            kernels += [
                kernel_of(
                    str(value.name),
                    x,
                    _peaks(value, units[value], context.arrays),
                    alpha,
                    bits,
                    None,
                )
                for value, x in part.items()
            ]
    names = Names(model)
    for value, nodes in readers.items():
        emulate(model.graph, value, nodes, widths[value], alpha, bits, names)
    context.report[_NAME] = {
        "mode": "emulate",
        "rounded": [str(value.name) for value in readers],
        "kernels": kernel_facts(kernels),
    }
    return True
