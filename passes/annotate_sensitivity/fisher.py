"""The predicted divergence: every row's error under GPTQ through its quadratic form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from ...ir import Option, Unit, UsageError
from ...ir.analysis.offered import expands_to_floats
from ..engine.execution.parallel import for_each
from ..engine.numerics.gptq import Factor, Rounded, as_half, round_rows, working_bytes
from ..engine.numerics.row_hessians import round_parts
from ..engine.statistics.integer_rounding import integer_losses
from ..engine.statistics.quadratic import Quadratic
from .judging import rounding_one
from .keeping import can_keep, ranked_columns
from .metric import Asked, Judgement, Keeping

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

    def of(unit: Unit) -> Judgement:
        quadratic = Quadratic.of(unit, asked.context.arrays, asked.context.device)
        loss = _loss(unit, quadratic, asked)
        return Judgement.of_losses(loss, unit.shape[1], _keeping(unit, quadratic, asked))

    found = _for_each(of, asked)
    return {unit.name: one for unit, one in zip(asked.units, found, strict=True)}


def losses(asked: Asked[object]) -> dict[str, np.ndarray]:
    """Returns what weights lose, ``1/2 g_n d^T H d`` in nats: rows x options for each unit."""

    def of(unit: Unit) -> np.ndarray:
        quadratic = Quadratic.of(unit, asked.context.arrays, asked.context.device)
        return _loss(unit, quadratic, asked)

    found = _for_each(of, asked)
    return {unit.name: loss for unit, loss in zip(asked.units, found, strict=True)}


def _for_each(of: Callable[[Unit], T], asked: Asked[object]) -> list[T]:
    return for_each(
        of,
        asked.units,
        asked.context.progress,
        "trying every width",
        need=lambda unit: working_bytes(*unit.shape),
        device=asked.context.device,
        cost=lambda unit: rounding_one(unit, asked.options[unit.name], asked).seconds(),
    )


def _keeping(unit: Unit, quadratic: Quadratic, asked: Asked[Settings]) -> Keeping | None:
    """Returns what keeping channels would change, where that can be done and was asked for."""
    counts = asked.settings.keep
    if not counts or not can_keep(unit, asked.context.capabilities):
        return None
    ranked = ranked_columns(unit, quadratic)[: counts[-1]]
    found = {n: _loss(unit, quadratic.keeping(ranked[:n]), asked) for n in counts}
    return Keeping(ranked, found)


def _loss(unit: Unit, quadratic: Quadratic, asked: Asked[object]) -> np.ndarray:
    weight = torch.from_numpy(unit.matrix()).to(asked.context.device)
    parts, left = quadratic.parts(), quadratic.hidden(weight)
    rows, columns = torch.arange(len(weight), device=weight.device), []
    table = asked.context.capabilities
    in_floats, signed = expands_to_floats(unit, table), table.signed_scales
    for option in asked.options[unit.name]:
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

        rounded = round_parts(left, rows, parts, rounded_so).dequantize(option.group)
        columns.append(quadratic.loss(weight, quadratic.completed(weight, rounded)))
    loss: np.ndarray = torch.stack(columns, dim=1).cpu().numpy()
    options = asked.options[unit.name]
    if quadratic.scarce:
        loss = monotone(loss, options)
    arrays = asked.context.arrays
    for at, option in enumerate(options):
        if option.integer:
            more = integer_losses(unit, weight, option, quadratic, arrays, table)
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
