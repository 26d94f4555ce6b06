"""What a model is run on where its speed matters."""

from __future__ import annotations

from dataclasses import dataclass

from .samples import Calibration

TOKEN = "token"
PROMPT = "prompt"
RUN = "run"
_PROMPT_TOKENS = 512


@dataclass(frozen=True)
class Workload:
    """One kind of run.

    Attributes:
        name: ``token`` (one more, behind a cache), ``prompt``, or ``run`` (as in calibration).
        tokens: Tokens of a sample; None for as many as in calibration.
    """

    name: str
    tokens: int | None

    def positions(self, seen: float, longest: float) -> float:
        """Returns at how many positions a product is taken.

        Args:
            seen: At how many it is in a calibration sample.
            longest: The same of the product that has most.
        """
        return seen if self.tokens is None else max(1.0, self.tokens * seen / longest)


def workloads(calibration: Calibration | None) -> tuple[Workload, ...]:
    """Returns the runs that matter for a model, which its samples tell.

    One that takes a cache, which is empty in calibration, reads a prompt and then writes one
    token after the other. Any other runs as it did in calibration.
    """
    if calibration is not None and any(one.size == 0 for one in calibration.feeds[0].values()):
        return (Workload(TOKEN, 1), Workload(PROMPT, _PROMPT_TOKENS))
    return (Workload(RUN, None),)
