"""The pass ``annotate-sensitivity``: what every row loses under every option."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ...ir import (
    Annotation,
    CachedFile,
    Calibrated,
    Capabilities,
    LeftInFloat,
    LocalHessian,
    Option,
    Score,
    Sensitivity,
    TensorStats,
    Unit,
    UsageError,
    annotate,
    need_note,
    note_of,
    quantizable,
)
from ...ir.analysis.offered import (
    DEFAULT_GROUPS,
    INTEGERS,
    Offer,
    expansion_obstacle,
    missing,
)
from ...ir.content_key import model_key
from ..engine.pipeline.base import Pass, PassContext, Promise
from ..engine.pipeline.chosen_options import chosen_options, one_of
from ..engine.pipeline.forecast import Forecast, Judged
from ..engine.pipeline.work import Work
from ..engine.statistics.moved import moves_key
from .metric import Asked
from .metrics import METRICS, SETTINGS
from .quickest import quickest

_FORMAT = "mpqc.sensitivity/8"
_LAST = "mpqc.sensitivity-last/1"


@dataclass(frozen=True)
class AnnotateSensitivity(Pass):
    """Predict the cost of storing each row of each unit with each option.

    Metrics of units:

    - ``fisher``: rounds every unit with GPTQ at every width and evaluates the error ``d`` of
      each row with the quadratic form of ``calibrate``: ``dKL_n = 1/2 g_n d^T H d``.
    - ``kl``: replaces the prediction for a whole unit by the divergence measured in the model
      when this unit alone is stored that way; its rows keep their shares.
    - ``trace``: ``1/2 g_n tr(H) / columns |d|^2``, the average Hessian trace of HAWQ-V2.
    - ``activation-norm``: ``E[x^2] |d|^2``, the unit's own output error.
    - ``weight-error``: ``|d|^2 / |W|^2``, independent of the activations.

    Metrics of blocks, which CPTQuant allocates by. A row with the share ``a`` of the weights
    of a block with score ``s`` loses ``s a 4^-bits``; lookups and the output head, which are
    in no block, count like the first block:

    - ``cca``: 1 - the mean canonical correlation of the block's output with those of others.
    - ``pruning``: growth of the loss when the block's smallest weights are zero.
    - ``taylor``: change of the loss by noise on the block's weights.

    Every unit also gets a score, one number for all options: that of its block, the root mean
    square of its inputs (``activation-norm``), its average trace (``trace``), its error under
    the smallest option (``weight-error``), or the loss per weight under the smallest option
    (``fisher``, ``kl``).

    Attributes:
        metric: One of those above.
        groups: Group sizes to offer, if the target's kernels take them.
        expand: Also offer widths without a kernel of their own (3, 5, 6, 7 bits): the file is
            smaller than the memory that the weights take once the model is loaded.
        bits: Widths to offer; by default all that the target has kernels for. A unit that has
            none of them is offered all. 16 offers codes of 16 bits to what expands to floats,
            and float16 as a whole to other units; the runtime widens both at load.
        integers: Whether to offer kernels that multiply integers, for which activations are
            rounded to 8 bits too: ``none``, for products ``beside`` other kernels, or
            ``quickest``: for products those kernels of a width that take less time, and for
            convolutions and LSTMs always.
        samples: Samples to measure on, 0 for all; by default all for ``cca``, 4 for
            ``pruning`` and ``taylor``, 2 for ``kl``.
        units: Measure only this many units, evenly spread; all by default (``kl``).
        keep: Numbers of input channels that a unit may keep in 16 bits, ascending;
            ``allocate-bits`` keeps them if they are worth their bytes (``fisher``).
        variant: ``plain`` (the first pair), ``pwcca`` (the default) or ``svcca`` (``cca``).
        window: Tokens to average into one point; by default all of a sample (``cca``).
        sparsity: Share of the weights to set to zero, by default 0.3 (``pruning``).
        form: ``gradient`` (the first-order term, in expectation; the default) or
            ``perturbation`` (the change of the loss, averaged over draws) (``taylor``).
        scale: Size of the noise over the root mean square of the weights, by default 0.01
            (``taylor``).
        seeds: Draws of the noise, by default 3 (``taylor`` with ``form=perturbation``).
        labels: ``model`` (labels drawn by the model itself, so that the loss grows by the
            divergence; the default) or ``text`` (the next token) (``pruning``, ``taylor``).
    """

    name: ClassVar[str] = "annotate-sensitivity"
    reads: ClassVar[tuple[type[Annotation], ...]] = (TensorStats, Calibrated)
    writes: ClassVar[tuple[type[Annotation], ...]] = (Sensitivity, Score)
    promise: ClassVar[Promise] = Promise.SAME_GRAPH
    metric: str = "fisher"
    groups: tuple[int, ...] = DEFAULT_GROUPS
    expand: bool = False
    bits: tuple[int, ...] = ()
    integers: str = INTEGERS[0]
    samples: int | None = None
    units: int | None = None
    keep: tuple[int, ...] | None = None
    variant: str | None = None
    window: int | None = None
    sparsity: float | None = None
    form: str | None = None
    scale: float | None = None
    seeds: int | None = None
    labels: str | None = None

    def __post_init__(self) -> None:
        one_of(INTEGERS, integers=self.integers)
        self._settings()

    def _settings(self) -> object:
        """Returns the metric's own options; refuses those of others."""
        return chosen_options(self, "metric", SETTINGS)

    @property
    def offer(self) -> Offer:
        """Which options units are judged under."""
        return Offer(self.groups, self.expand, self.bits, self.integers)

    def preflight(self, model: ir.Model, context: PassContext, forecast: Forecast) -> None:
        """Refuses options that the model has no use for, or the target no kernels."""
        self._check_target(quantizable(model), context.capabilities)

    def recall(self, model: ir.Model, context: PassContext) -> None:
        """Annotates the units with the losses that were found last, if there are any.

        They are those of the same statistics; passes that have not run yet may have changed
        weights since.
        """
        if note_of(model, Calibrated) is None:
            return
        units = [one for one in quantizable(model) if self._is_offered(one, context)]
        last = self._last(model, units, context)
        facts = last.peek()
        losses = last.path.with_name(Path(str(facts["file"])).name) if facts else last.path
        if facts is None or not losses.is_file():
            return
        context.arrays.mount(losses)
        for unit in units:
            if f"{unit.name}/loss" in context.arrays:
                self._annotate(unit, context)

    def work(self, model: ir.Model, context: PassContext, forecast: Forecast) -> Work:
        """Every option of every unit; nothing where an earlier run has left its losses."""
        units = quantizable(model)
        if any(note_of(unit.notes, Sensitivity) is not None for unit in units):
            return Work()
        offered = {unit: self.offer.options(unit, context.capabilities) for unit in units}
        asked = Asked(model, units, {}, self.metric, self._settings(), context)
        return METRICS[self.metric].work(offered, asked)

    def forecast(self, before: Forecast) -> Forecast:
        by_block = METRICS[self.metric].by_block
        judged = Judged(self.offer, by_block=by_block, keeps=bool(self.keep))
        return super().forecast(before).telling(judged)

    def run(self, model: ir.Model, context: PassContext) -> bool:
        """Annotates every unit that the target has an option for."""
        units = [unit for unit in quantizable(model) if self._is_offered(unit, context)]
        left = self._check_target(units, context.capabilities)
        if left:
            context.report[self.name] = {"not_expanding": left}
        losses = self._losses(model, units, context)
        if losses.facts(context.progress.say) is None:
            losses.write(self._computed(model, units, context), {})
        self._last(model, units, context).write({}, {"file": losses.path.name})
        for unit in units:
            for earlier in ("loss", "score", "keep/"):  # what moved since is in memory
                context.arrays.discard(f"{unit.name}/{earlier}")
        context.arrays.mount(losses.path)
        for unit in units:
            self._annotate(unit, context)
        return True

    def _check_target(self, units: Sequence[Unit], table: Capabilities) -> dict[str, str]:
        """Returns why units are offered no expanding width, where those are asked for.

        Raises:
            UsageError: No unit is offered any, or the target keeps no channels.
        """
        if self.keep and not table.keeps_columns:
            raise UsageError(
                f"{table.target} keeps no input channels in 16 bits", hint="leave out keep"
            )
        if self.integers != INTEGERS[0] and not table.integer_bits:
            raise UsageError(
                f"{table.target} has no kernels that multiply integers, as far as is known",
                hint="leave out integers",
            )
        if not self.expand:
            return {}
        reasons = {unit.name: expansion_obstacle(unit, table) for unit in units}
        left = {name: why for name, why in reasons.items() if why}
        if units and len(left) == len(units):
            why = next(iter(left.values()))
            raise UsageError(
                f"no weight can be stored at a width that expands at load: {why}",
                hint="give --budget instead of --file-budget",
            )
        return left

    def _annotate(self, unit: Unit, context: PassContext) -> None:
        options = tuple(str(one) for one in self._options(unit, context))
        loss = context.arrays.get(f"{unit.name}/loss")
        total = tuple(float(one) for one in loss.sum(axis=0, dtype=np.float64))
        annotate(unit.notes, Sensitivity(unit.name, self.metric, options, total))
        score, block = context.arrays.get(f"{unit.name}/score")
        annotate(unit.notes, Score(unit.name, self.metric, float(score), int(block)))

    def _is_offered(self, unit: Unit, context: PassContext) -> bool:
        """Tells whether the target can store the unit; says why not in a note."""
        if self.offer.options(unit, context.capabilities):
            return True
        annotate(unit.notes, LeftInFloat(unit.name, missing(unit, context.capabilities)))
        return False

    def _options(self, unit: Unit, context: PassContext) -> list[Option]:
        """Returns the options that a unit is judged under."""
        offered = self.offer.options(unit, context.capabilities)
        return quickest(unit, offered, context) if self.integers == INTEGERS[2] else offered

    def _losses(
        self, model: ir.Model, units: Sequence[Unit], context: PassContext
    ) -> CachedFile:
        """Returns the file for the losses of what the target offers for each unit."""
        stats = need_note(model, Calibrated).stats
        table = context.capabilities
        offered = [(one.name, *map(str, self._options(one, context))) for one in units]
        moves = moves_key(quantizable(model), context.arrays)
        return context.cached_file(
            _FORMAT, stats, self, table.kernels, offered, moves, _state(model)
        )

    def _last(
        self, model: ir.Model, units: Sequence[Unit], context: PassContext
    ) -> CachedFile:
        """Returns the file that names the losses found last for these statistics."""
        stats, table = need_note(model, Calibrated).stats, context.capabilities
        names = sorted(unit.name for unit in units)
        return context.cached_file(_LAST, stats, self, table.kernels, names)

    def _computed(
        self, model: ir.Model, units: Sequence[Unit], context: PassContext
    ) -> dict[str, np.ndarray]:
        options = {unit.name: self._options(unit, context) for unit in units}
        asked = Asked(model, units, options, self.metric, self._settings(), context)
        judged = METRICS[self.metric].judge(asked)
        arrays = {f"{name}/loss": one.loss for name, one in judged.items()}
        for name, one in judged.items():
            if one.keeping is not None:
                arrays[f"{name}/keep/columns"] = one.keeping.columns
                for count, loss in one.keeping.losses.items():
                    arrays[f"{name}/keep/{count}"] = loss
            arrays[f"{name}/score"] = np.array([one.score, one.block], dtype=np.float64)
        return arrays


def _state(model: ir.Model) -> str:
    """Returns the changes by passes after ``calibrate``, apart from moves and scales."""
    notes = (note_of(unit.notes, LocalHessian) for unit in quantizable(model))
    return model_key(model, weights=False) + "".join(str(note) for note in notes if note)
