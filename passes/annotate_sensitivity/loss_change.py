"""What another output costs: nats per place, or half the relative squared error.

With ``labels=model`` the labels are those that the exact model would draw itself, so that the
expected change of the loss is the divergence from the exact output, and no text is needed.
With ``labels=text`` they are the tokens that come next in the samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ...ir import Calibrated, Calibration, UsageError, need_note
from ..engine.execution.samples import Sample
from ..engine.numerics.divergence import kl_divergence, negative_log_likelihood
from .metric import Asked


@dataclass(frozen=True)
class LossChange:
    """Compares outputs of one model.

    Attributes:
        note: Names the objective and the output that it reads.
        samples: Name the input that carries tokens.
        labels: ``model`` or ``text``.
    """

    note: Calibrated
    samples: Calibration
    labels: str = "model"

    @classmethod
    def of(cls, asked: Asked[object], labels: str = "model") -> LossChange:
        """Returns the comparison for a calibrated model.

        Raises:
            UsageError: Labels are to come from a text that the model does not read.
        """
        note = need_note(asked.model, Calibrated)
        samples = asked.context.calibration
        assert samples is not None
        if labels == "text" and (note.objective != "logits" or samples.tokens is None):
            raise UsageError(
                "labels=text needs a model that reads tokens and gives logits",
                hint="use labels=model",
            )
        return cls(note, samples, labels)

    def __call__(self, sample: Sample, exact: torch.Tensor, other: torch.Tensor) -> float:
        """Returns by how much the loss grows, on average over real places."""
        p, q = exact.float().cpu().numpy(), other.float().cpu().numpy()
        if self.labels == "text":
            at, labels = self.next_tokens(sample, p.shape[:-1])
            return float(_mean_loss(q[at], labels) - _mean_loss(p[at], labels))
        real = sample.padding.real(p.shape[:-1])
        if self.note.objective == "logits":
            return float(kl_divergence(p[real], q[real]).mean())
        error = np.square(q[real] - p[real], dtype=np.float64).sum()
        return float(0.5 * error / max(np.square(p[real], dtype=np.float64).sum(), 1e-30))

    def next_tokens(
        self, sample: Sample, shape: tuple[int, ...]
    ) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
        """Returns the indices of places whose next token is known, and these tokens.

        Raises:
            UsageError: The logits are not one row a token.
        """
        ids = sample.arrays[str(self.samples.tokens)]
        if ids.shape != shape:
            raise UsageError(
                f"labels=text needs a row of logits for every token, not {list(shape)}"
                f" for {list(ids.shape)}",
                hint="use labels=model",
            )
        real = sample.padding.real(shape)
        known = np.nonzero(real[..., :-1] & real[..., 1:])
        return known, ids[..., 1:][known]


def _mean_loss(logits: np.ndarray, labels: np.ndarray) -> float:
    return float(negative_log_likelihood(logits, labels).mean()) if len(labels) else 0.0
