"""Where two tensors that should be equal differ first."""

from __future__ import annotations

from dataclasses import dataclass

import torch

_MASKED = 1e18  # entries from here on rule something out and set no scale
_LARGE, _RULING = 1e8, 3e4  # so do these, and what stands for them in float16


@dataclass(frozen=True)
class Difference:
    """The first entry that is not what it should be.

    Attributes:
        value: Name of the value.
        place: Its indices; empty when the shapes differ.
        expected: What it was before the pass, as text.
        actual: What it is now.
    """

    value: str
    place: tuple[int, ...]
    expected: str
    actual: str

    def __str__(self) -> str:
        place = f" at {list(self.place)}" if self.place else ""
        return f"{self.value!r}{place} is {self.actual}, expected {self.expected}"


def find_difference(
    value: str,
    expected: torch.Tensor,
    actual: torch.Tensor,
    tolerance: float,
    *,
    by_channel: bool = False,
    any_mask: bool = False,
) -> Difference | None:
    """Returns the first entry of ``actual`` that is too far from ``expected``, or None.

    An entry may be off by ``tolerance`` times the larger of its own magnitude and the root
    mean square of the tensor. Integers are only compared by shape: those that depend on data,
    such as an ArgMax, may jump where floats round.

    Args:
        value: Name of the value, for the report.
        expected: Any shape and type.
        actual: What should equal it.
        tolerance: Relative error that rounding of floats explains.
        by_channel: Take the root mean square of each channel of the last axis by itself.
        any_mask: Whether numbers that rule something out may be others that do, too.
    """
    if expected.shape != actual.shape:
        return Difference(value, (), f"shape {[*expected.shape]}", f"shape {[*actual.shape]}")
    if not expected.is_floating_point() or not expected.numel():
        return None
    wanted, got = expected.float(), actual.float()
    limit = wanted.abs().clamp_min(_scale(wanted, by_channel=by_channel)) * tolerance
    same = (wanted == got) | (wanted.isnan() & got.isnan())
    if any_mask:
        limit = wanted.abs().clamp_min(_scale_below(wanted, _LARGE)) * tolerance
        ruling = (wanted.abs() >= _LARGE) & (got.abs() >= _RULING)
        same |= ruling & (wanted.sign() == got.sign())
    wrong = ~(same | ((wanted - got).abs() <= limit))
    if not bool(wrong.any()):
        return None
    place = tuple(int(one) for one in wrong.nonzero()[0])
    return Difference(value, place, f"{float(wanted[place]):.6g}", f"{float(got[place]):.6g}")


def _scale_below(wanted: torch.Tensor, most: float) -> torch.Tensor:
    return wanted.where(wanted.abs() < most, 0.0).square().mean().sqrt()


def _scale(wanted: torch.Tensor, *, by_channel: bool) -> torch.Tensor:
    real = wanted.where(wanted.abs() < _MASKED, 0.0)  # NaN compares false, too
    if by_channel and wanted.ndim > 1:
        return real.square().flatten(0, -2).mean(0).sqrt()
    return real.square().mean().sqrt()


def is_rearranged(expected: torch.Tensor, actual: torch.Tensor, tolerance: float) -> bool:
    """Tells whether the channels of ``actual`` are those of ``expected``, moved and scaled.

    Every channel must be a positive multiple of some channel of the other tensor, both ways.
    Channels are those of the last axis, or else of the second.
    """
    if expected.shape != actual.shape or not expected.is_floating_point():
        return False
    axes = dict.fromkeys([expected.ndim - 1, min(1, expected.ndim - 1)])
    return any(
        _are_multiples(_directions(expected, axis), _directions(actual, axis), tolerance)
        for axis in axes
        if axis >= 0
    )


def _directions(tensor: torch.Tensor, axis: int) -> torch.Tensor:
    """Returns one unit vector for each channel; zeros stay zero."""
    channels = tensor.double().movedim(axis, 0).flatten(1)
    return torch.nn.functional.normalize(channels, dim=1, eps=1e-30)


def _are_multiples(one: torch.Tensor, other: torch.Tensor, tolerance: float) -> bool:
    # Of two unit vectors the distance, unlike the product, resolves angles below 1e-8.
    distances = torch.cdist(one, other, compute_mode="donot_use_mm_for_euclid_dist")
    nearest = torch.cat([distances.amin(0), distances.amin(1)])
    return bool((nearest <= tolerance).all())
