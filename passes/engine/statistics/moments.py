"""The second moments that the sweeps gather, accumulated in the file that keeps them.

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
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from ....ir import Unit
from ....ir.sealed_file import ArrayFile, Layout
from .token_file import TokenFile

WEIGHT_RANGE = (0.05, 4.0)
ACTIVATION_BLOCK = 64  # kernels that round activations share one int8 scale among this many
MOST_COUPLED_ROWS = 8192  # the matrix between rows has the square of this
MOST_ARRAY_COLUMNS = 4608  # of 512 channels and 9 places; beyond, errors count one by one
UNSEEN = 0.1  # share of the probability that goes to rows that calibration did not see


@dataclass(frozen=True)
class UnitMoments:
    """Names and shapes of the arrays of one unit."""

    unit: Unit

    def arrays(self, coupled: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yields every array's name and shape.

        Args:
            coupled: Whether there is one between the rows, for units that one product reads.
        """
        rows, columns = self.unit.shape
        for at, use in enumerate(self.unit.uses):
            yield self.name(at, "rows"), (rows,)
            if not use.takes_floats or columns <= MOST_ARRAY_COLUMNS:
                yield self.name(at, "hessian"), (columns, columns)
            if not use.takes_floats:
                yield self.name(at, "activation"), (columns,)
            if use.kind == "product":
                yield self.name(at, "span"), (1,)
                yield self.name(at, "low"), (columns,)
                yield self.name(at, "high"), (columns,)
        alone = len(self.unit.uses) == 1 and self.unit.uses[0].kind == "product"
        if coupled and alone and rows <= MOST_COUPLED_ROWS:
            yield self.name(0, "coupling"), (rows, rows)

    def name(self, use: int, what: str) -> str:
        """Returns the name of an array of the ``use``-th term."""
        return f"{self.unit.name}/{use}/{what}"


def moment_layout(units: Iterable[Unit], *, coupled: bool) -> Layout:
    """Returns shape and type of every array that a ``MomentFile`` of ``units`` fills."""
    shapes = dict(one for unit in units for one in UnitMoments(unit).arrays(coupled))
    return {name: (shape, np.float32) for name, shape in shapes.items()}


class MomentFile:
    """Accumulators of all units, laid out in their final file from the start.

    The arrays of the block at work stay in memory until ``flush``.
    """

    def __init__(self, file: ArrayFile) -> None:
        self._file = file
        self._names = file.names
        self._counts: dict[str, int] = defaultdict(int)
        self._open: dict[str, torch.Tensor] = {}
        self._tokens = TokenFile(file.folder)
        self._extremes: dict[str, torch.Tensor] = {}
        self._ranged: set[str] = set()

    def add(self, name: str, array: torch.Tensor, count: int) -> None:
        """Adds a sum (``count`` 0) or the mean over ``count`` positions to an accumulator."""
        term = array * count if count else array
        self._open[name] = self._open[name] + term if name in self._open else term
        self._counts[name] += count

    def __contains__(self, name: str) -> bool:
        return name in self._names

    @property
    def held_bytes(self) -> int:
        """Bytes of the sums that are in memory."""
        return sum(array.nbytes for array in self._open.values())

    def keep(self, name: str, weights: torch.Tensor) -> None:
        """Keeps ``c_t`` of one sample behind those of the samples before."""
        self._tokens.append(name, weights.half().numpy())

    def add_inputs(self, moments: UnitMoments, use: int, inputs: torch.Tensor) -> None:
        """Widens the range that was seen of what a product multiplies.

        Args:
            moments: Names the arrays.
            use: Which product.
            inputs: Tokens of a sample x columns.
        """
        if not len(inputs):
            return
        low, high = moments.name(use, "low"), moments.name(use, "high")
        found = {low: inputs.amin(dim=0), high: inputs.amax(dim=0)}
        if low in self._extremes:
            found[low] = torch.minimum(found[low], self._extremes[low])
            found[high] = torch.maximum(found[high], self._extremes[high])
        self._extremes.update(found)
        width = inputs.amax().clamp_min(0) - inputs.amin().clamp_max(0)
        self.add(moments.name(use, "span"), width.square().reshape(1), len(inputs))

    def flush(self) -> None:
        """Moves the arrays in memory to the file.

        Nothing small may outlive the block that it belongs to: freed memory between small
        things that stay cannot be given back, and the process grows to several times its need.
        """
        for name, array in self._open.items():
            self._file.array(name)[...] += array.numpy()
        self._open.clear()
        for name, extreme in self._extremes.items():
            kept = self._file.array(name)
            widen = np.minimum if name.endswith("/low") else np.maximum
            found = extreme.numpy()
            kept[...] = widen(kept, found) if name in self._ranged else found
        self._ranged.update(self._extremes)
        self._extremes.clear()

    def mean_diagonal(self, name: str) -> float:
        """Returns the mean of a flushed Hessian's diagonal, as an expectation."""
        return float(np.trace(self._file.array(name))) / (
            len(self._file.array(name)) * max(self._counts[name], 1)
        )

    def rows_seen(self) -> dict[str, int]:
        """Returns how many rows every unit's Hessian is of; of several, the fewest.

        Of an array that several nodes read, one has the Hessian and the others have nothing.
        """
        seen: dict[str, int] = {}
        hessians = (one for one in self._names if one.endswith("/hessian"))
        for name in (one for one in hessians if self._counts[one]):
            unit, count = name.rsplit("/", 2)[0], self._counts[name]
            seen[unit] = min(seen.get(unit, count), count)
        return seen

    def overflown(self) -> list[str]:
        """Returns the names of units with sums that are not finite."""
        self.flush()
        broken = (
            name for name in self._names if not np.isfinite(self._file.array(name)).all()
        )
        return sorted({name.rsplit("/", 2)[0] for name in broken})

    def finish(self, positions: float) -> None:
        """Turns sums into expectations, and adds ``<unit>/<t>/tokens``, the ``c_t``, float16.

        A row that mattered nowhere, like that of a dead ReLU, may matter at the next place: it
        is given what an average row has at one place.

        Args:
            positions: At how many places the loss was taken: what plain sums are divided by.
        """
        self.flush()
        for name in sorted(self._names - self._ranged):
            array = self._file.array(name)
            array /= self._counts[name] or max(positions, 1.0)
            if name.endswith("/rows"):
                array[array == 0] = array.mean() / max(positions, 1.0)
        for name, weights in self._tokens.take():
            self._file.append(name, weights)


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
    return torch.full((output.shape[1],), 1 / max(float(energy), 1e-24))


def token_weights(gradient: torch.Tensor) -> torch.Tensor:
    """Returns ``c_t``: squared gradient norms with mean 1, clipped to ``WEIGHT_RANGE``."""
    weights = gradient.square().sum(dim=1)
    mean = weights.mean()
    if not mean > 0:
        return torch.ones_like(weights)
    return (weights / mean).clamp(*WEIGHT_RANGE)


def weighted_gram(inputs: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Returns the mean over tokens of ``c_t x_t x_t^T``, the weights scaled to mean 1."""
    scaled = inputs * (weights / weights.sum())[:, None]
    return scaled.T @ inputs


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
