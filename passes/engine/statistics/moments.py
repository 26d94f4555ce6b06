"""The second moments that the sweeps gather, summed over samples.

A unit has one quadratic term for each use. For a product ``Y = X W`` the term is

    hessian = E[c_t x_t x_t^T]            rows[n] = E[(dl/dy_n)^2]

where ``c_t`` is the squared norm of the gradient at the unit's output for token t (mean 1,
clipped), so that rounding cares for the tokens that the loss cares for. Where the output *is*
the logits, ``rows`` has the closed form ``E[p_v (1 - p_v)]``. For a lookup the term is

    hessian = E[(dl/de) (dl/de)^T]        rows[v] = the frequency of row v

The smallest and the largest input of every column are kept as well, as ``low`` and ``high``,
and as ``span`` the mean square of the distance between them in a sample, over all columns.
Where it is asked for, products have ``coupling = E[(dl/dy) (dl/dy)^T]``, rows x rows, too: how
much errors of different rows add up or cancel in the loss. Its diagonal is ``rows``.

For a weight that its readers take as floats (a convolution, an LSTM), whose products nobody
sees, it is made of the weight's own gradient ``G = dl/dW``, rows x columns, of each sample:

    hessian = E[G^T G]                    rows[n] = E[mean_k G_nk^2]

a tenth of ``rows`` spread over all of them. The Hessian, the right factor of Shampoo (Gupta,
Koren and Singer, 2018), is scaled to a mean diagonal of 1 when it is read. It holds how
errors add up along an image or a sequence, which second moments of single places do not.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from ....ir import Unit
from ..numerics.gram import add_gram
from .squares import packed_square

SQUARES = ("/hessian", "/coupling")
TOKENS = "/tokens"
_EXTREMES = ("/low", "/high")

WEIGHT_RANGE = (0.05, 4.0)
ACTIVATION_BLOCK = 64  # kernels that round activations share one int8 scale among this many
MOST_COUPLED_ROWS = 8192  # the matrix between rows has the square of this
MOST_ARRAY_COLUMNS = 4608  # of 512 channels and 9 places; beyond, errors count one by one
UNSEEN = 0.1  # share of the probability that goes to rows that calibration did not see


@dataclass(frozen=True)
class UnitMoments:
    """Names and shapes of the arrays of one unit."""

    unit: Unit

    def arrays(self, coupled: bool) -> Iterator[str]:
        """Yields every array's name.

        Args:
            coupled: Whether there is one between the rows, for units that one product reads.
        """
        rows, columns = self.unit.shape
        for at, use in enumerate(self.unit.uses):
            yield self.name(at, "rows")
            if not use.takes_floats or columns <= MOST_ARRAY_COLUMNS:
                yield self.name(at, "hessian")
            if not use.takes_floats:
                yield self.name(at, "activation")
            if use.kind == "product":
                yield from (self.name(at, what) for what in ("span", "low", "high"))
        alone = len(self.unit.uses) == 1 and self.unit.uses[0].kind == "product"
        if coupled and alone and rows <= MOST_COUPLED_ROWS:
            yield self.name(0, "coupling")

    def name(self, use: int, what: str) -> str:
        """Returns the name of an array of the ``use``-th term."""
        return f"{self.unit.name}/{use}/{what}"


def moment_names(units: Iterable[Unit], *, coupled: bool) -> frozenset[str]:
    """Returns the names of all arrays that are gathered for some units."""
    return frozenset(name for unit in units for name in UnitMoments(unit).arrays(coupled))


class MomentSums:
    """Sums over samples, in memory: those of one block at a time.

    Attributes:
        wanted: Names of the arrays that are gathered.
    """

    def __init__(self, wanted: frozenset[str]) -> None:
        self.wanted = wanted
        self._sums: dict[str, torch.Tensor] = {}
        self._counts: dict[str, int] = defaultdict(int)
        self._tokens: dict[str, list[torch.Tensor]] = defaultdict(list)

    def __contains__(self, name: str) -> bool:
        return name in self.wanted

    def add(self, name: str, array: torch.Tensor, count: int) -> None:
        """Adds a sum (``count`` 0) or the mean over ``count`` positions."""
        term = array * count if count else array
        self._sums[name] = self._sums[name] + term if name in self._sums else term
        self._counts[name] += count

    def add_gram(
        self, name: str, rows: torch.Tensor, weights: torch.Tensor | None, count: int
    ) -> None:
        """Adds ``sum_t c_t x_t x_t^T``, of which the part above the diagonal is kept.

        Args:
            name: Name of the array.
            rows: The ``x_t``, tokens x columns.
            weights: The ``c_t``; None where all are 1.
            count: Positions that this is the sum over; 0 for those of the loss.
        """
        size = rows.shape[1]
        if name not in self._sums:
            self._sums[name] = torch.zeros(size, size, device=rows.device)
        add_gram(self._sums[name], rows, weights)
        self._counts[name] += count

    def keep(self, name: str, weights: torch.Tensor) -> None:
        """Keeps ``c_t`` of one sample after those of the samples before."""
        self._tokens[name].append(weights.half().cpu())

    def add_inputs(self, moments: UnitMoments, use: int, inputs: torch.Tensor) -> None:
        """Widens the range that was seen of what a product multiplies.

        Args:
            moments: Names the arrays.
            use: Which product.
            inputs: Tokens of a sample x columns.
        """
        if not len(inputs):
            return
        self._widen(moments.name(use, "low"), inputs.amin(dim=0))
        self._widen(moments.name(use, "high"), inputs.amax(dim=0))
        width = inputs.amax().clamp_min(0) - inputs.amin().clamp_max(0)
        self.add(moments.name(use, "span"), width.square().reshape(1), len(inputs))

    def _widen(self, name: str, found: torch.Tensor) -> None:
        wider = torch.minimum if name.endswith("/low") else torch.maximum
        known = self._sums.get(name)
        self._sums[name] = found if known is None else wider(known, found)

    def merge(self, later: MomentSums) -> None:
        """Adds the sums over samples that come after those of this one."""
        for name, array in later._sums.items():
            if name.endswith(_EXTREMES):
                self._widen(name, array)
            elif name in self._sums:
                self._sums[name] += array
            else:
                self._sums[name] = array
        for name, count in later._counts.items():
            self._counts[name] += count
        for name, parts in later._tokens.items():
            self._tokens[name] += parts

    def tensors(self) -> dict[str, torch.Tensor]:
        """Returns all sums by name, for ``of``."""
        return self._sums | {name: torch.cat(parts) for name, parts in self._tokens.items()}

    @classmethod
    def of(
        cls,
        wanted: frozenset[str],
        tensors: Mapping[str, torch.Tensor],
        counts: Mapping[str, int],
    ) -> MomentSums:
        """Returns the sums that had these ``tensors`` and ``counts``, to the bit."""
        sums = cls(wanted)
        sums._counts.update(counts)
        for name, tensor in tensors.items():
            if name.endswith(TOKENS):
                sums._tokens[name].append(tensor)
            else:
                sums._sums[name] = tensor
        return sums

    def mean_diagonal(self, name: str) -> float:
        """Returns the mean of a Hessian's diagonal, as an expectation."""
        return float(self._sums[name].diagonal().mean()) / max(self._counts[name], 1)

    def overflown(self) -> list[str]:
        """Returns the names of units with sums that are not finite."""
        broken = [name for name, one in self._sums.items() if not _is_finite(one)]
        return sorted({name.rsplit("/", 2)[0] for name in broken})

    def counts(self) -> dict[str, int]:
        """Returns over how many positions each array is the mean; 0 for a sum."""
        return {name: self._counts.get(name, 0) for name in sorted(self._sums)}

    def arrays(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yields what to store, means where positions were counted; forgets it on the way."""
        for name in sorted(self._sums):
            array = self._sums.pop(name).cpu()
            if not name.endswith(_EXTREMES) and self._counts[name]:
                array /= self._counts[name]
            if name.endswith(SQUARES):
                yield from packed_square(name, array).items()
            else:
                yield name, array.numpy()
        for name in sorted(self._tokens):
            yield name, torch.cat(self._tokens.pop(name)).numpy()


def _is_finite(array: torch.Tensor) -> bool:
    """Tells whether an array is finite; of a square one, what is above its diagonal."""
    if array.ndim == 2:
        array = array.triu()
    return bool(torch.isfinite(array).all())


def unseen_share(counts: torch.Tensor) -> float:
    """Returns the chance that the next lookup is of a row not seen yet (Good and Turing).

    It is the share of the lookups that were the only one of their row.
    """
    return float((counts == 1).sum() / counts.sum().clamp_min(1))


def own_error(output: torch.Tensor) -> torch.Tensor:
    """Returns for every channel what makes the loss half the relative error of ``output``.

    This judges a unit whose output gets no gradient of the loss, although others read it.
    """
    energy = output.square().mean() * output.shape[1]
    return output.new_full((output.shape[1],), 1 / max(float(energy), 1e-24))


def token_weights(gradient: torch.Tensor) -> torch.Tensor:
    """Returns ``c_t``: squared gradient norms with mean 1, clipped to ``WEIGHT_RANGE``."""
    weights = gradient.square().sum(dim=1)
    mean = weights.mean()
    if not mean > 0:
        return torch.ones_like(weights)
    return (weights / mean).clamp(*WEIGHT_RANGE)


def normalized(weights: torch.Tensor) -> torch.Tensor:
    """Returns weights of tokens with a mean of 1."""
    return weights * (len(weights) / weights.sum())


def rounding_variance(inputs: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Returns the error variance of each column when tokens are rounded to int8 in blocks.

    The step is ``absmax / 127`` of the token's block, and a uniform error has variance
    ``step^2 / 12``. Tokens count by ``weights``.
    """
    columns = inputs.shape[1]
    missing = -columns % ACTIVATION_BLOCK
    padded = torch.nn.functional.pad(inputs, (0, missing))
    steps = padded.reshape(len(inputs), -1, ACTIVATION_BLOCK).abs().amax(dim=2) / 127
    variance = (weights / weights.sum()) @ steps.square() / 12
    return variance.repeat_interleave(ACTIVATION_BLOCK)[:columns]
