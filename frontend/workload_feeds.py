"""Inputs for the runs in which a model's speed matters."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..ir import Feeds
from ..ir.workloads import TOKEN, Workload
from .model_inputs import ModelInput

_PAST_TOKENS = 128  # that the cache holds when one more token is read
_BY_TOKEN = ("tokens", "mask", "positions", "segments")  # roles with a place for each token


def workload_feed(inputs: Sequence[ModelInput], sample: Feeds, run: Workload) -> Feeds:
    """Returns what a model is fed in a run.

    Args:
        inputs: The inputs of the model.
        sample: A calibration sample, whose cache is empty if the model has one.
        run: A prompt of so many tokens, one token behind others, or a run as in calibration.
    """
    if run.tokens is None:
        return sample
    past = _PAST_TOKENS if run.name == TOKEN else 0
    roles = {one.name: one.role for one in inputs}
    return {
        name: _fed(array, roles.get(name, "other"), run.tokens, past)
        for name, array in sample.items()
    }


def _fed(array: np.ndarray, role: str, tokens: int, past: int) -> np.ndarray:
    if role == "past" and array.size == 0:
        return np.zeros([size or past for size in array.shape], array.dtype)
    if role not in _BY_TOKEN or array.ndim != 2:
        return array
    if role == "positions":
        return np.repeat(
            np.arange(past, past + tokens, dtype=array.dtype)[None], len(array), 0
        )
    length = past + tokens if role == "mask" else tokens
    return np.asarray(np.take(array, np.arange(length) % array.shape[1], axis=1))
