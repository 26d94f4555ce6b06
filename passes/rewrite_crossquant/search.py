"""Choose the column scales of a site: the error of its products, as they will be computed.

For each candidate ``f`` the weights ``W diag(f)`` are rounded, and the activations ``x / f``
as the kernel does it. With ``d`` the rounding error of a row and ``e_t`` that of a token,

    cost(f)  =  1/2 sum_n g_n ( sum_k p_k d_nk^2 / f_k^2  +  E_t (e_t . w^_n)^2 )

in nats per token, where ``g`` is the importance of rows that ``calibrate`` has gathered. ``p``
prices an error in a column: for widths that GPTQ rounds it is what an error costs once the
later columns have made up for it, ``1 / U_kk^2``; under ``f`` its Cholesky factor becomes
``U diag(f)``, so the price of every candidate follows from one factorization. Where weights
are rounded to nearest it is the diagonal of the Hessian.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch

from ...ir import ArrayStore, Unit
from ..engine.execution.devices import CPU
from ..engine.numerics.activations import (
    block_steps,
    column_factors,
    powers_of_two,
    rounded,
    tensor_steps,
)
from ..engine.numerics.gptq import LOSSLESS_BITS, nearest
from ..engine.statistics.moments import ACTIVATION_BLOCK
from ..engine.statistics.moved import read_moved
from ..engine.statistics.quadratic import Quadratic
from .folding import by_class, consumed
from .sites import Site

ALPHAS = (0.0, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
BETAS = (0.0, 0.25, 0.5, 0.75)
SAMPLED_ROWS = 128  # of each unit, as a sample


@dataclass(frozen=True)
class Deployed:
    """How products will be computed.

    Attributes:
        bits: Width of the weights' codes.
        group: Columns of a weight that share a scale; 0 stands for whole rows.
        activations: What shares a scale of 8 bits: each ``token``, each ``group`` of columns
            of a token, the ``tensor``; or ``none``, when they are not rounded.
        exact: Whether only powers of two may be factors.
    """

    bits: int
    group: int
    activations: str
    exact: bool = False

    def steps(self, x: torch.Tensor) -> torch.Tensor | None:
        """Returns the steps with which tokens x columns are rounded, if they are."""
        if self.activations == "none":
            return None
        if self.activations == "tensor":
            return tensor_steps(x)
        return block_steps(x, ACTIVATION_BLOCK if self.activations == "group" else 0)


@dataclass(frozen=True)
class Scales:
    """Factors for the classes of a site.

    Attributes:
        factors: One for each class.
        alpha: Share that is left to the token.
        beta: Power of the weights.
        cost: Their predicted cost, in nats per token.
        plain: The same without any factors.
    """

    factors: np.ndarray
    alpha: float
    beta: float
    cost: float
    plain: float

    @property
    def is_identity(self) -> bool:
        """Whether nothing has to be scaled."""
        return bool(np.all(self.factors == 1))


@dataclass(frozen=True)
class Magnitudes:
    """The sources of a site's factors, by class, over all of its consumers.

    Attributes:
        peaks: Largest magnitude of the activation.
        weights: Largest magnitude of the weights that read it.
    """

    peaks: torch.Tensor
    weights: torch.Tensor

    @classmethod
    def of(cls, site: Site, arrays: ArrayStore) -> Magnitudes:
        """Reads every consumer once."""
        peaks, weights = torch.zeros(site.classes), torch.zeros(site.classes)
        for part in site.consumers:
            assert part.unit is not None
            inside = part.classes >= 0
            places = torch.from_numpy(part.classes[inside])
            seen = peaks_of(part.unit, arrays)[inside]
            sizes = np.abs(part.unit.matrix()).max(axis=0)[inside]
            peaks.scatter_reduce_(0, places, torch.from_numpy(seen), "amax")
            weights.scatter_reduce_(0, places, torch.from_numpy(sizes), "amax")
        return cls(peaks, weights)

    def factors(self, alpha: float, beta: float, exact: bool) -> np.ndarray:
        """Returns one candidate: a factor for each class."""
        found = column_factors(self.peaks, self.weights, alpha, beta)
        return (powers_of_two(found) if exact else found).numpy()


def peaks_of(unit: Unit, arrays: ArrayStore) -> np.ndarray:
    """Returns the largest magnitude that calibration saw in each column, over all uses."""
    terms = [at for at, use in enumerate(unit.uses) if use.kind == "product"]
    found = [
        np.maximum(-read_moved(unit, arrays, at, "low"), read_moved(unit, arrays, at, "high"))
        for at in terms
    ]
    return np.asarray(np.max(found, axis=0).clip(0), dtype=np.float32)


def search(
    site: Site,
    seen: Mapping[ir.Value, torch.Tensor],
    arrays: ArrayStore,
    deployed: Deployed,
    *,
    alphas: tuple[float, ...] = ALPHAS,
    betas: tuple[float, ...] = (0.0,),
    identity: bool = True,
    least: float = 0.0,
    device: str = CPU,
) -> Scales:
    """Returns the cheapest scales.

    Args:
        site: Where.
        seen: Tokens x columns of the site's activations.
        arrays: What calibration has gathered.
        deployed: How products will be computed.
        alphas: Candidates.
        betas: Candidates.
        identity: Whether no scales at all are a candidate.
        least: Share of their loss that scales must take away to be better than none.
        device: Where to compute.
    """
    products = [
        one.to(device)
        for unit in consumed(site)
        for one in _products(unit, seen, arrays, deployed, device)
    ]
    magnitudes = Magnitudes.of(site, arrays)
    classes = {
        part.unit.name: part.classes for part in site.consumers if part.unit is not None
    }

    def cost(factors: np.ndarray) -> float:
        return sum(
            one.cost(
                torch.from_numpy(by_class(factors, classes[one.name])).to(device), deployed
            )
            for one in products
        )

    def scales(alpha: float, beta: float) -> Scales:
        factors = magnitudes.factors(alpha, beta, deployed.exact)
        return Scales(factors, alpha, beta, cost(factors), plain)

    none = np.ones(site.classes, np.float32)
    plain = cost(none)
    best = _cheapest(scales, alphas, betas)
    if identity and best.cost >= (1 - least) * plain:
        return Scales(none, 1.0, 0.0, plain, plain)
    return best


def _cheapest(
    scales: Callable[[float, float], Scales], alphas: Sequence[float], betas: Sequence[float]
) -> Scales:
    """Searches along one axis at a time: all alphas, then all betas, then the alphas beside.

    The cost is smooth in both, so what lies beyond that is hardly ever cheaper.
    """
    best = min((scales(alpha, betas[0]) for alpha in alphas), key=_cost)
    best = min([best, *(scales(best.alpha, beta) for beta in betas[1:])], key=_cost)
    if best.beta == betas[0]:
        return best
    at = alphas.index(best.alpha)
    beside = [*alphas[max(at - 1, 0) : at], *alphas[at + 1 : at + 2]]
    return min([best, *(scales(alpha, best.beta) for alpha in beside)], key=_cost)


def _cost(scales: Scales) -> float:
    return scales.cost


@dataclass(frozen=True)
class _Product:
    """One use of a unit: some of its rows, some of its tokens.

    Attributes:
        name: Name of the unit.
        weight: Rows x columns.
        rows: Importance of each of them; they stand for all rows.
        price: The cost of a squared error in each column.
        tokens: Tokens x columns.
    """

    name: str
    weight: torch.Tensor
    rows: torch.Tensor
    price: torch.Tensor
    tokens: torch.Tensor

    def to(self, device: str) -> _Product:
        """Returns the same on a device."""
        parts = (self.weight, self.rows, self.price, self.tokens)
        return _Product(self.name, *(one.to(device) for one in parts))

    def cost(self, factors: torch.Tensor, deployed: Deployed) -> float:
        """Returns what rounding weights and activations costs under ``factors``."""
        group = deployed.group or len(factors)
        price = self.price / factors.square()
        wide = self.weight * factors
        stored = nearest(wide, deployed.bits, group, price).dequantize(group)
        weights = (stored - wide).square() @ price
        inputs = self.tokens / factors
        steps = deployed.steps(inputs)
        if steps is not None:
            errors = rounded(inputs, steps) - inputs
            weights += (errors @ stored.T).square().mean(dim=0)
        return float(0.5 * (self.rows * weights).sum())


def _products(
    unit: Unit,
    seen: Mapping[ir.Value, torch.Tensor],
    arrays: ArrayStore,
    deployed: Deployed,
    device: str,
) -> list[_Product]:
    quadratic = Quadratic.of(unit, arrays, device)
    compensates = deployed.bits < LOSSLESS_BITS
    shared = quadratic.factor().price if compensates else None
    step = max(1, unit.shape[0] // SAMPLED_ROWS)
    weight = torch.from_numpy(unit.matrix()[::step])
    found = []
    for use, rows, hessian in zip(unit.uses, quadratic.rows, quadratic.hessians, strict=True):
        if use.activation in seen:
            few = rows[::step] * (float(rows.sum()) / max(float(rows[::step].sum()), 1e-30))
            price = hessian.diagonal().clone() if shared is None else shared
            found.append(_Product(unit.name, weight, few, price, seen[use.activation]))
    return found
