"""The Taylor score of a block (CPTQuant's TDMPQ, Nanda et al. 2024, arXiv 2412.03599).

How the loss answers to noise ``d`` on the weights of a block, ``d ~ N(0, (scale rms(W))^2)``
for each of its matrices:

- ``form=gradient``: the first-order term ``E |<dl/dW, d>|``. The scalar product is Gaussian,
  so the expectation over ``d`` has a closed form and needs no draws:
  ``sqrt(2/pi) sqrt(sum_u (scale rms(W_u))^2 |dl/dW_u|^2)``, averaged over samples.
- ``form=perturbation``: ``loss(W + d) - loss(W)``, averaged over ``seeds`` draws of ``d``. The
  published code disturbs one matrix with noise of size 1 and takes the sum of the logits,
  without what they were before; here there are a baseline and a scale.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import partial

import numpy as np

from ...ir import Unit, UsageError
from ..engine.pipeline.chosen_options import at_least, one_of
from .disturbed import LossSettings, loss_changes
from .gradients import first_order
from .layers import judgements, layers_of
from .metric import Asked, Judgement

_DRAWS = 3


@dataclass(frozen=True)
class Settings(LossSettings):
    """Options of ``taylor``.

    Attributes:
        form: ``gradient`` (the first-order term, in expectation) or ``perturbation`` (the
            change of the loss, averaged over draws).
        scale: Size of the noise over the root mean square of the weights.
        seeds: Draws of the noise (``form=perturbation``); 3 when it is left out.
    """

    form: str = "gradient"
    scale: float = 0.01
    seeds: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(("gradient", "perturbation"), form=self.form)
        if not 0 < self.scale <= 1:
            raise UsageError(f"scale must be between 0 and 1, not {self.scale}")
        if self.seeds is None:
            return
        at_least(1, seeds=self.seeds)
        if self.form == "gradient":
            raise UsageError(
                "form=gradient draws no noise, so it has no use for seeds",
                hint="use form=perturbation, or leave seeds out",
            )


def judge(asked: Asked[Settings]) -> dict[str, Judgement]:
    """Scores every block by what noise on its weights does to the loss."""
    layers, settings = layers_of(asked), asked.settings
    if settings.form == "gradient":
        sizes = {
            unit.name: noise_size(unit.matrix(), settings.scale)
            for layer in layers
            for unit in layer.units
        }
        scores = first_order(asked, layers, sizes)
    else:
        draws = [
            partial(disturbed, scale=settings.scale, seed=asked.context.seed + at)
            for at in range(settings.seeds or _DRAWS)
        ]
        scores = loss_changes(asked, layers, draws)
    return judgements(asked, layers, scores)


def noise_size(matrix: np.ndarray, scale: float) -> float:
    """Returns the standard deviation of the noise on a matrix: ``scale`` times its rms."""
    return scale * float(np.sqrt(np.mean(np.square(matrix, dtype=np.float64))))


def disturbed(unit: Unit, scale: float, seed: int) -> np.ndarray:
    """Returns the weights of ``unit`` with noise, which depends on its name and the seed."""
    matrix = unit.matrix()
    name = int.from_bytes(hashlib.sha256(unit.name.encode()).digest()[:8], "little")
    noise = np.random.default_rng([name, seed]).standard_normal(matrix.shape, np.float32)
    changed: np.ndarray = matrix + noise * np.float32(noise_size(matrix, scale))
    return changed
