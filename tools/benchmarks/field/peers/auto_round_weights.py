"""auto-round: rounding learned by signed gradient descent, at one width or by AutoScheme.

Settings: ``bits``, ``group`` and ``sym``, or ``avg_bits`` and ``options`` for AutoScheme;
``iters`` (0 is its optimized rounding to nearest) and ``samples``. An output head that is tied
to the embedding it leaves alone, asked or not.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from auto_round import AutoRound, AutoScheme
from transformers import AutoModelForCausalLM, AutoTokenizer

from .exchange import Job, grouped_bytes, hand_back


def main() -> None:
    """Quantizes the model that the job names."""
    job = Job.given()
    asked = job.settings
    model = AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.float32)
    ids = job.samples(asked.get("samples"))
    reader = AutoTokenizer.from_pretrained(job.model)
    rounding = AutoRound(
        model,
        reader,
        scheme=_scheme(asked, ids.shape[1]),
        dataset=_texts(job, ids, reader) if "avg_bits" in asked else _tensors(ids),
        iters=asked["iters"],
        nsamples=len(ids),
        seqlen=ids.shape[1],
        batch_size=8,
        amp=False,
        device_map="cpu",
        **asked.get("more", {}),
    )
    done, _ = rounding.quantize()
    _hand_back(job, done)


def _tensors(ids: np.ndarray) -> list[torch.Tensor]:
    return [torch.from_numpy(one)[None] for one in ids]


def _texts(job: Job, ids: np.ndarray, reader: Any) -> str:
    """Writes the samples as texts, a little longer, for AutoScheme reads nothing but files."""
    more = np.roll(ids, -1, axis=0)[:, : ids.shape[1] // 8]
    path = job.out / "texts.json"
    texts = [reader.decode(one) for one in np.concatenate([ids, more], axis=1)]
    path.write_text(json.dumps(texts), encoding="utf-8")
    return str(path)


def _scheme(asked: dict[str, Any], length: int) -> Any:
    if "avg_bits" not in asked:
        names = {"bits": asked["bits"], "group_size": asked["group"], "sym": asked["sym"]}
        return {**names, "data_type": "int", "act_bits": 16}
    options = [
        {"bits": bits, "group_size": group, "sym": asked["sym"], "data_type": "int"}
        for bits, group in asked["options"]
    ]
    return AutoScheme(avg_bits=asked["avg_bits"], options=options, seqlen=length)


def _hand_back(job: Job, model: torch.nn.Module) -> None:
    weights, stored = dict(model.named_parameters()), {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and getattr(module, "bits", 16) < 16:
            stored[f"{name}.weight"] = _size(module)
    hand_back(job, weights, stored)


def _size(layer: Any) -> float:
    """Returns the bytes of a layer's codes, scales and zero points."""
    group = layer.group_size if layer.group_size > 0 else layer.in_features
    zero = 0 if layer.sym else layer.bits
    return grouped_bytes(layer.weight.numel(), layer.bits, group, zero)


if __name__ == "__main__":
    main()
