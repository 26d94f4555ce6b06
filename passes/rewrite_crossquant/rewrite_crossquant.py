"""The pass ``rewrite-crossquant``: scales by token and by column for int8 activations."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar

import onnx_ir as ir

from ...ir import (
    Annotation,
    BitAllocation,
    Calibrated,
    ColumnScales,
    InputError,
    QuantSpec,
    Sensitivity,
    Settled,
    TensorStats,
    UsageError,
    annotate,
    find_units,
    note_of,
)
from ...ir.analysis.offered import DEFAULT_GROUPS
from ...ir.text_form import did_you_mean
from ..engine.pipeline.base import Pass, PassContext, Promise
from ..engine.pipeline.forecast import Forecast
from ..engine.pipeline.work import Work
from .dynamic import lower_all
from .fold_work import fold_work
from .rewriting import FoldSettings, emulate_all, fold_all
from .search import Deployed

MODES = ("emulate", "fold", "dynamic")
_ROUNDS = 11  # the opset that brought Round
ACTIVATIONS = ("auto", "token", "group", "tensor", "none")
_OWN = {  # options that make no sense everywhere, with the modes that take them
    "activation_bits": ("emulate",),
    "beta": ("fold", "dynamic"),
    "bits": ("fold", "dynamic"),
    "activations": ("fold",),
    "exact": ("fold", "dynamic"),
    "explicit": ("fold", "dynamic"),
    "cache": ("fold", "dynamic"),
    "least": ("fold", "dynamic"),
    "optional": ("fold",),
}


@dataclass(frozen=True)
class RewriteCrossquant(Pass):
    """Give activations a rounding step for each token and column (CrossQuant).

    One step for a whole token is as coarse as its largest entry; if a few columns are huge,
    most other entries are rounded to zero. With the largest magnitudes ``t_i`` of a token and
    ``c_j`` of a column and ``m = 2^(bits - 1) - 1``, the step of CrossQuant is

        step_ij = t_i^alpha c_j^(1 - alpha) / m

    - ``emulate`` computes exactly that, as graph nodes around every product: right to the last
      digit, slow, and only for measurements.
    - ``fold`` takes ``f_j = c_j^(1 - alpha)`` from calibration, divides the producer of the
      activation by it and multiplies the weights that read it. No output changes, and kernels
      that round by token (``accuracy_level=4`` of MatMulNBits: by token and group) then have
      steps at most as large as CrossQuant's. One ``f`` serves all products of an activation;
      it enters norm weights, or the rows of the product before (through ReLU, a gate, or the
      values of an attention).
    - ``dynamic`` folds, and then multiplies int8 by int8 with MatMulInteger: tokens are
      rounded at run time, and weights once, with one scale per row. With ``alpha=1`` it rounds
      by token only.

    With ``alpha=search`` every activation gets the alpha at which its products lose least,
    with weights and activations rounded as they will be, or no scale. The statistics of
    calibration stay valid. A unit whose producer cannot absorb a scale is left alone, and the
    report says why. For every activation, the report also counts the entries that are rounded
    to zero: by token, by CrossQuant, and in the rewritten graph.

    Attributes:
        mode: ``emulate``, ``fold`` or ``dynamic``.
        alpha: Share of the token in the step, from 0 (by column) to 1 (by token), or
            ``search``.
        beta: Power of the weights' own magnitudes in ``f_j = c_j^(1 - alpha) w_j^-beta``, or
            ``search``.
        bits: Width that weights are rounded to, in the search and by ``dynamic`` (4, 8).
        activation_bits: Width that ``emulate`` rounds activations to.
        activations: The entries that share a scale in the search of ``fold``: each ``token``,
            each ``group`` of 64 columns of a token, the whole ``tensor``, or ``none`` (not
            rounded); ``auto`` follows the target's kernels.
        samples: Number of calibration samples to use.
        exact: Round ``f`` to powers of two: not a bit of any output changes.
        explicit: Divide the activation at run time if no producer can absorb a scale.
        cache: Let scales reach a key-value cache that is an output of the model. This is right
            only if callers do nothing with the cache but feed it back.
        least: Share of an activation's predicted loss that a scale must remove; otherwise
            there is none. Small gains are mostly noise of the few samples.
        optional: Leave a model alone if no producer at all can absorb a scale, instead of
            refusing it.
    """

    name: ClassVar[str] = "rewrite-crossquant"
    reads: ClassVar[tuple[type[Annotation], ...]] = (TensorStats, Calibrated)
    writes: ClassVar[tuple[type[Annotation], ...]] = (ColumnScales, Settled)
    drops: ClassVar[tuple[type[Annotation], ...]] = (Sensitivity, BitAllocation, QuantSpec)
    promise: ClassVar[Promise] = Promise.SAME_FUNCTION
    mode: str = "fold"
    alpha: float | str = 0.15
    beta: float | str = 0.0
    bits: int = 8
    activation_bits: int = 8
    activations: str = "auto"
    samples: int = 4
    exact: bool = False
    explicit: bool = False
    cache: bool = False
    least: float = 0.0
    optional: bool = False

    def __post_init__(self) -> None:
        _check_word("mode", self.mode, MODES)
        _check_word("activations", self.activations, ACTIVATIONS)
        _check_share("alpha", self.alpha)
        _check_share("beta", self.beta)
        self._check_combination()
        if not 2 <= self.activation_bits <= 16:
            raise UsageError(f"activations of {self.activation_bits} bits make no sense")
        widths = (4, 8) if self.mode == "dynamic" else (2, 3, 4, 5, 6, 7, 8)
        if self.bits not in widths:
            raise UsageError(f"mode={self.mode} takes no weights of {self.bits} bits")
        if self.samples < 1:
            raise UsageError("rewrite-crossquant needs at least one sample")
        self._check_least()

    def promised(self) -> Promise:
        """Only a fold leaves the outputs alone, and scales in the cache are seen outside."""
        changes = self.mode != "fold" or self.cache
        return Promise.OTHER if changes else self.promise

    def _check_least(self) -> None:
        if not 0 <= self.least < 1:
            raise UsageError(f"rewrite-crossquant: least must be in 0 to 1, not {self.least}")
        if self.least and "search" not in (self.alpha, self.beta):
            raise UsageError(
                "rewrite-crossquant{least=...} is for a search",
                hint="give alpha=search, or leave it out",
            )

    def _check_combination(self) -> None:
        """Refuses options that would be ignored."""
        for option, modes in _OWN.items():
            default = type(self).__dataclass_fields__[option].default
            if getattr(self, option) != default and self.mode not in modes:
                shown = option.replace("_", "-")
                raise UsageError(
                    f"mode={self.mode} has no {shown}",
                    hint=f"{shown} is for {' and '.join(modes)}",
                )
        if self.mode == "emulate" and self.alpha == "search":
            raise UsageError(
                "mode=emulate takes a number for alpha", hint="the paper has 0.15"
            )

    def work(self, model: ir.Model, context: PassContext, forecast: Forecast) -> Work:
        """Runs of a few samples, and every candidate on some rows of every product."""
        searched = "search" in (self.alpha, self.beta)
        return fold_work(model, context, self.samples, self.bits, searched=searched)

    def run(self, model: ir.Model, context: PassContext) -> bool:
        """Rewrites ``model``; reports its changes and the quantization kernels."""
        before = _sizes(model)
        changed = self._rewrite(model, context)
        bytes_, weights = (now - old for now, old in zip(_sizes(model), before, strict=True))
        if bytes_ or weights:
            earlier = note_of(model, Settled) or Settled(0, 0)
            annotate(model, Settled(earlier.bytes + bytes_, earlier.weights - weights))
        return changed

    def _rewrite(self, model: ir.Model, context: PassContext) -> bool:
        opset = model.graph.opset_imports.get("", 1)
        if self.mode != "fold" and opset < _ROUNDS:
            raise InputError(
                f"opset {opset} has no Round, which mode={self.mode} needs",
                hint=f"put raise-opset{{version={_ROUNDS}}} after normalize",
            )
        if self.mode == "emulate":
            return emulate_all(
                model, float(self.alpha), self.activation_bits, self.samples, context
            )
        names = [field.name for field in fields(FoldSettings)]
        settings = FoldSettings(**{name: getattr(self, name) for name in names})
        changed = fold_all(model, settings, self._deployed(context), context)
        if self.mode == "dynamic":
            changed |= lower_all(model, self.bits, context)
        return changed

    def _deployed(self, context: PassContext) -> Deployed:
        """Returns how products will be computed."""
        if self.mode == "dynamic":
            return Deployed(self.bits, 0, "token", self.exact)
        activations = self.activations
        if activations == "auto":
            table = context.capabilities
            widths = [one.bits for one in table.kernels]
            widths = [self.bits] if self.bits in widths else widths
            rounds = any(table.rounds_activations(bits) for bits in widths)
            activations = "group" if rounds else "none"
        return Deployed(self.bits, DEFAULT_GROUPS[0], activations, self.exact)


def _sizes(model: ir.Model) -> tuple[int, int]:
    """Returns the bytes of constants that are not weights, and the number of weights."""
    units = find_units(model)
    weights = {unit.weight for unit in units}
    others = [one for one in model.graph.initializers.values() if one not in weights]
    total = sum(one.const_value.nbytes for one in others if one.const_value is not None)
    return total, sum(unit.size for unit in units)


def _check_word(option: str, word: str, known: tuple[str, ...]) -> None:
    if word not in known:
        raise UsageError(
            f"rewrite-crossquant has no {option} {word!r}", hint=did_you_mean(word, known)
        )


def _check_share(option: str, value: float | str) -> None:
    if isinstance(value, str) and value != "search":
        raise UsageError(
            f"rewrite-crossquant: {option} is a number or search, not {value!r}",
            hint=did_you_mean(value, ("search",)),
        )
    if isinstance(value, float) and not 0 <= value <= 1:
        raise UsageError(f"rewrite-crossquant: {option} must be in 0 to 1, not {value}")
