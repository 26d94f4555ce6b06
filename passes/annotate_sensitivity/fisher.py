"""The predicted divergence: every row's error under GPTQ through its quadratic form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import torch

from ...ir import Option, Unit, UsageError
from ...ir.analysis.offered import expands_to_floats
from ..engine.numerics.factor import Factor
from ..engine.numerics.gptq import Rounded, as_half, round_rows, working_bytes
from ..engine.numerics.row_hessians import round_parts
from ..engine.pipeline.base import PassContext
from ..engine.statistics.integer_rounding import integer_losses
from ..engine.statistics.quadratic import Quadratic
from .judging import rounding_one
from .keeping import can_keep, may_be_worth_keeping, ranked_columns, tried_with_kept
from .metric import Asked, Judgement, Keeping, OfUnit, judge_each

T = TypeVar("T")


@dataclass(frozen=True)
class Settings:
    """Options of ``fisher``.

    Attributes:
        keep: Numbers of input channels that a unit may keep in 16 bits, ascending.
    """

    keep: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in zip(self.keep, self.keep[1:], strict=False))
        if not rising or any(count < 1 for count in self.keep):
            raise UsageError("numbers of channels to keep have to rise, like keep=[8, 32]")


def judge(asked: Asked[Settings]) -> dict[str, Judgement]:
    """Predicts the divergence of every row."""
    return _each(asked, partial(_judged, counts=asked.settings.keep))


def losses(asked: Asked[object]) -> dict[str, np.ndarray]:
    """Returns what weights lose, ``1/2 g_n d^T H d`` in nats: rows x options for each unit."""
    return _each(asked, _losses)


def _each(asked: Asked[object], of: OfUnit[T]) -> dict[str, T]:
    return judge_each(
        asked,
        of,
        "trying every width",
        need=lambda unit: working_bytes(*unit.shape),
        cost=lambda unit: rounding_one(unit, asked.options[unit.name], asked).seconds(),
    )


def _judged(
    unit: Unit, options: Sequence[Option], context: PassContext, counts: Sequence[int]
) -> Judgement:
    quadratic = Quadratic.of(unit, context.arrays, context.device)
    loss = _loss(unit, quadratic, options, context)
    keeping = _keeping(unit, quadratic, options, loss, context, counts)
    return Judgement.of_losses(loss, unit.shape[1], keeping)


def _losses(unit: Unit, options: Sequence[Option], context: PassContext) -> np.ndarray:
    return _loss(unit, Quadratic.of(unit, context.arrays, context.device), options, context)


def _keeping(
    unit: Unit,
    quadratic: Quadratic,
    options: Sequence[Option],
    loss: np.ndarray,
    context: PassContext,
    counts: Sequence[int],
) -> Keeping | None:
    """Returns what keeping channels would change, where that can be done and was asked for.

    One option of each width is tried. Where that shows that channels may be worth their bytes,
    the others are tried too; elsewhere they are taken to lose as much less.
    """
    if not counts or not can_keep(unit, context.capabilities):
        return None
    ranked = ranked_columns(unit, quadratic)[: counts[-1]]
    tried, standing = tried_with_kept(options)
    found = {}
    for count in counts:
        kept = quadratic.keeping(ranked[:count])
        less = _loss(unit, kept, [options[at] for at in tried], context)
        if may_be_worth_keeping(count, unit.shape[1], less, loss[:, tried]):
            found[count] = _loss(unit, kept, options, context)
            continue
        share = np.divide(less, loss[:, tried], out=np.ones_like(less), where=less > 0)
        found[count] = loss * share[:, standing]
    return Keeping(ranked, found)


def _loss(
    unit: Unit, quadratic: Quadratic, options: Sequence[Option], context: PassContext
) -> np.ndarray:
    weight = torch.from_numpy(unit.matrix()).to(context.device)
    parts, left = quadratic.parts(), quadratic.hidden(weight)
    rows, columns = torch.arange(len(weight), device=weight.device), []
    table = context.capabilities
    in_floats, signed = expands_to_floats(unit, table), table.signed_scales
    for option in options:
        if option.is_half:
            columns.append(quadratic.loss(weight, as_half(weight)))
            continue

        def rounded_so(part: torch.Tensor, factor: Factor, one: Option = option) -> Rounded:
            return round_rows(
                part,
                one.bits,
                one.group,
                factor,
                in_floats=in_floats,
                signed=signed,
                float8=one.float8,
            )

        rounded = round_parts(left, rows, parts, rounded_so)
        columns.append(quadratic.loss_of(weight, rounded, option.group, parts))
    loss: np.ndarray = torch.stack(columns, dim=1).cpu().numpy()
    if quadratic.scarce:
        loss = monotone(loss, options)
    for at, option in enumerate(options):
        if option.integer:
            more = integer_losses(unit, weight, option, quadratic, context.arrays, table)
            loss[:, at] += more.cpu().numpy()
    return loss


def monotone(loss: np.ndarray, options: Sequence[Option]) -> np.ndarray:
    """Lets no option look worse than one whose codes it could store.

    A wider code in finer groups can say all that a narrower one in coarser groups says; where
    it seems to lose more, too few tokens have been seen to tell.
    """
    return np.stack(
        [
            loss[:, [at for at, two in enumerate(options) if _covers(one, two)]].min(axis=1)
            for one in options
        ],
        axis=1,
    )


def _covers(one: Option, other: Option) -> bool:
    """Tells whether ``one`` can store whatever ``other`` stores."""
    return one.is_half or (one.bits >= other.bits and other.group % one.group == 0)
