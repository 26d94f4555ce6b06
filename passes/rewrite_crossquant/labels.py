"""Labels: which channel every entry of a value's last axes belongs to.

A label array is broadcast against the value from the right, as numpy does. Entries with the
same label must get the same scale; label 0 must get none. The arrays follow a value through
operators that move entries about, and labels that meet are joined.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .shapes import Dim

NONE = 0  # the label of channels that cannot take a scale


class Labels:
    """Hands out labels and remembers which of them have to agree."""

    def __init__(self, parents: Sequence[int] = (NONE,)) -> None:
        self._parents = list(parents)

    def copy(self) -> Labels:
        """Returns labels that can go on in another way."""
        return Labels(self._parents)

    def fresh(self, count: int) -> np.ndarray:
        """Returns ``count`` labels that nothing has yet."""
        first = len(self._parents)
        self._parents.extend(range(first, first + count))
        return np.arange(first, first + count)

    def join(self, one: np.ndarray, other: np.ndarray) -> None:
        """Lets entries at the same place (after broadcasting) have the same scale."""
        first, second = np.broadcast_arrays(one, other)
        different = first != second
        for a, b in zip(first[different].tolist(), second[different].tolist(), strict=True):
            low, high = sorted((self._root(a), self._root(b)))
            self._parents[high] = low  # the smallest wins, so what joins NONE is NONE

    def roots(self, labels: np.ndarray) -> np.ndarray:
        """Returns for every label the smallest one that it has to agree with."""
        flat = [self._root(one) for one in labels.reshape(-1).tolist()]
        return np.array(flat, dtype=np.int64).reshape(labels.shape)

    def _root(self, label: int) -> int:
        while self._parents[label] != label:
            self._parents[label] = label = self._parents[self._parents[label]]
        return label

    def narrowed(self, labels: np.ndarray, dims: Sequence[Dim]) -> np.ndarray:
        """Returns the labels of a value of shape ``dims`` that is broadcast to ``labels``."""
        kept = stripped(labels)
        if kept.ndim > len(dims):
            kept = self._merged(kept, range(kept.ndim - len(dims)))
            kept = kept.reshape(kept.shape[-len(dims) :] if dims else ())
        tail = dims[len(dims) - kept.ndim :]
        return self._merged(kept, [at for at, dim in enumerate(tail) if dim == 1])

    def _merged(self, labels: np.ndarray, axes: Sequence[int]) -> np.ndarray:
        """Joins all labels along ``axes``, which become 1 long."""
        for axis in axes:
            first = labels.take([0], axis=axis)
            if labels.shape[axis] > 1:
                self.join(labels, first)
            labels = first
        return labels


def stripped(labels: np.ndarray) -> np.ndarray:
    """Returns ``labels`` without leading axes of length 1."""
    while labels.ndim and labels.shape[0] == 1:
        labels = labels[0]
    return labels


def transposed(labels: np.ndarray, perm: Sequence[int]) -> np.ndarray:
    """Returns the labels of a value whose axes were put in the order ``perm``."""
    wide = labels.reshape((1,) * (len(perm) - labels.ndim) + labels.shape)
    return stripped(wide.transpose(tuple(perm)))


def reshaped(
    labels: np.ndarray, before: Sequence[Dim], after: Sequence[Dim]
) -> np.ndarray | None:
    """Returns the labels of a value that was reshaped, or None when that cannot be told.

    Trailing axes that both shapes share keep their labels. Of the rest, the labelled ones must
    be of known length and have a counterpart of the same size.
    """
    labels = stripped(labels)
    same = 0
    while same < min(len(before), len(after), labels.ndim) and _equal(
        before[-1 - same], after[-1 - same]
    ):
        same += 1
    inner = labels.shape[labels.ndim - same :]
    span = list(before[len(before) - labels.ndim : len(before) - same])
    if all(length == 1 for length in labels.shape[: labels.ndim - same]):
        return stripped(labels.reshape(inner))
    if not all(isinstance(dim, int) for dim in span):
        return None
    sizes = [int(dim) for dim in span if isinstance(dim, int)]
    # An open length can be worked out only if what stands before it is what stood there.
    lead = len(before) - labels.ndim
    outer = _tail_of_size(after[: len(after) - same], int(np.prod(sizes)), lead)
    if outer is None:
        return None
    wide = np.broadcast_to(labels, (*sizes, *inner))
    return stripped(wide.reshape((*outer, *inner)))


def _equal(one: Dim, other: Dim) -> bool:
    return one is not None and one == other


def _tail_of_size(dims: Sequence[Dim], size: int, lead: int) -> tuple[int, ...] | None:
    """Returns the trailing dims with ``size`` entries, after at least ``lead`` others."""
    tail: list[int] = []
    for at in reversed(range(len(dims))):
        have, dim = int(np.prod(tail)) if tail else 1, dims[at]
        if have == size:
            break
        if dim is None and at == lead and size % have == 0:
            dim = size // have
        if not isinstance(dim, int):
            return None
        tail.insert(0, dim)
    return tuple(tail) if tail and int(np.prod(tail)) == size else None
