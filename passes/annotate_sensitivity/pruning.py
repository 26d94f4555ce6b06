"""The pruning score of a block (CPTQuant's PMPQ, Nanda et al. 2024, arXiv 2412.03599).

``s_l = loss(the smallest weights of block l are zero) - loss(exact)``, positive where pruning
does harm. Each matrix loses the same share of its weights. The published code takes test
accuracy or perplexity for the loss; here it is the loss on calibration samples, so that no
test data decides anything and models without labels have a score too.
"""

from __future__ import annotations

import numpy as np

from ...ir import Unit
from .disturbed import loss_changes
from .layers import judgements, layers_of
from .metric import Asked, Judgement


def judge(asked: Asked) -> dict[str, Judgement]:
    """Scores every block by what pruning it costs."""
    layers, settings = layers_of(asked), asked.settings

    def prune(unit: Unit) -> np.ndarray:
        return pruned(unit.matrix(), settings.sparsity)

    scores = loss_changes(asked, layers, [prune], settings.labels)
    return judgements(asked, layers, scores)


def pruned(matrix: np.ndarray, sparsity: float) -> np.ndarray:
    """Returns a copy in which the given share of the weights, the smallest ones, is zero."""
    result = matrix.copy()
    count = round(sparsity * matrix.size)
    if count:
        smallest = np.argpartition(np.abs(matrix), count - 1, axis=None)[:count]
        result.reshape(-1)[smallest] = 0
    return result
