"""The pruning score of a block (CPTQuant's PMPQ, Nanda et al. 2024, arXiv 2412.03599).

``s_l = loss(the smallest weights of block l are zero) - loss(exact)``, positive where pruning
does harm. Each matrix loses the same share of its weights. The published code takes test
accuracy or perplexity for the loss; here it is the loss on calibration samples, so that no
test data decides anything and models without labels have a score too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...ir import Unit, UsageError
from .disturbed import LossSettings, loss_changes
from .layers import judgements, layers_of
from .metric import Asked, Judgement


@dataclass(frozen=True)
class Settings(LossSettings):
    """Options of ``pruning``.

    Attributes:
        sparsity: Share of the weights that is zeroed.
    """

    sparsity: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.sparsity < 1:
            raise UsageError(f"sparsity must be between 0 and 1, not {self.sparsity}")


def judge(asked: Asked[Settings]) -> dict[str, Judgement]:
    """Scores every block by what pruning it costs."""
    layers, settings = layers_of(asked), asked.settings

    def prune(unit: Unit) -> np.ndarray:
        return pruned(unit.matrix(), settings.sparsity)

    scores = loss_changes(asked, layers, [prune])
    return judgements(asked, layers, scores)


def pruned(matrix: np.ndarray, sparsity: float) -> np.ndarray:
    """Returns a copy in which the given share of the weights, the smallest ones, is zero."""
    result = matrix.copy()
    count = round(sparsity * matrix.size)
    if count:
        smallest = np.argpartition(np.abs(matrix), count - 1, axis=None)[:count]
        result.reshape(-1)[smallest] = 0
    return result
