"""How far two outputs are apart. Everything is counted in float64, a few rows at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

MASKED = 1e18  # entries from here on rule something out; their squares are beyond float32
_MASKED = 1e18
_SMALLEST = 1e-24
_CHUNK = 1 << 22  # entries that are turned into float64 at once


def _rows(array: np.ndarray) -> np.ndarray:
    """Returns ``array`` as rows over its last axis."""
    return array.reshape(-1, array.shape[-1]) if array.ndim else array.reshape(1, 1)


def _chunks(*arrays: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
    """Yields the same few rows of each array, as float64."""
    rows = [_rows(array) for array in arrays]
    step = max(1, _CHUNK // max(rows[0].shape[1], 1))
    for at in range(0, len(rows[0]), step):
        yield tuple(part[at : at + step].astype(np.float64) for part in rows)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Returns the logarithms of the softmax over the last axis, in float64."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted


def kl_of_logs(log_p: np.ndarray, log_q: np.ndarray) -> np.ndarray:
    """Returns KL(p || q) of every row in nats.

    Args:
        log_p: Logarithms of the reference, tokens x vocabulary.
        log_q: Those to compare, of the same shape.
    """
    ruled_out = np.isneginf(log_p)  # such an entry weighs nothing, whatever q says
    gap = np.subtract(log_p, log_q, where=~ruled_out, out=np.zeros_like(log_p))
    return np.asarray(np.einsum("tv,tv->t", np.exp(log_p), gap))


def kl_divergence(p_logits: np.ndarray, q_logits: np.ndarray) -> np.ndarray:
    """Returns KL(p || q) of every token in nats.

    Args:
        p_logits: Logits of the reference, tokens x vocabulary (leading axes are flattened).
        q_logits: Logits to compare, of the same shape.
    """
    chunks = _chunks(p_logits, q_logits)
    parts = [kl_of_logs(log_softmax(p), log_softmax(q)) for p, q in chunks]
    return np.concatenate(parts) if parts else np.empty(0)


def top1_agreement(p_logits: np.ndarray, q_logits: np.ndarray) -> np.ndarray:
    """Returns, for every token, whether both prefer the same entry."""
    return np.asarray(_rows(p_logits).argmax(-1) == _rows(q_logits).argmax(-1))


def negative_log_likelihood(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns the loss of every token in nats; ``exp`` of its mean is the perplexity.

    Args:
        logits: Tokens x vocabulary (leading axes are flattened).
        labels: The token that came, for each row of ``logits``.
    """
    flat = labels.reshape(-1)
    parts = []
    at = 0
    for (part,) in _chunks(logits):
        chosen = flat[at : at + len(part), None]
        parts.append(-np.take_along_axis(log_softmax(part), chosen, axis=-1)[:, 0])
        at += len(part)
    return np.concatenate(parts) if parts else np.empty(0)


def relative_error(reference: np.ndarray, result: np.ndarray) -> float:
    """Returns ``|result - reference| / |reference|``, Euclidean over all entries."""
    error = size = 0.0
    for wanted, got in _chunks(reference, result):
        error += float(np.square(got - wanted).sum())
        size += float(np.square(wanted).sum())
    if size == 0.0:
        return 0.0 if error == 0.0 else float("inf")
    return float(np.sqrt(error / size))


def squared_divergence(reference: np.ndarray, result: np.ndarray) -> np.ndarray:
    """Returns half the squared error of every row, relative to the rows' mean square.

    This is what a regression's predicted loss counts. Entries so large that they rule
    something out count nothing.
    """
    rows, parts, square = _rows(reference), [], 0.0
    for wanted, got in _chunks(reference, result):
        real = np.abs(wanted) < _MASKED
        parts.append(0.5 * np.square(np.where(real, got - wanted, 0.0)).sum(-1))
        square += float(np.square(np.where(real, wanted, 0.0)).sum())
    if not parts:
        return np.empty(0)
    return np.concatenate(parts) / max(square / len(rows), _SMALLEST)


def cosine(reference: np.ndarray, result: np.ndarray) -> np.ndarray:
    """Returns the cosine of every row (over the last axis); 1 where both are zero."""
    parts = []
    for wanted, got in _chunks(reference, result):
        norms = np.linalg.norm(wanted, axis=-1) * np.linalg.norm(got, axis=-1)
        same = np.all(wanted == got, axis=-1)
        dots = (wanted * got).sum(-1)
        parts.append(np.where(same, 1.0, dots / np.where(norms == 0.0, 1.0, norms)))
    return np.concatenate(parts) if parts else np.empty(0)
