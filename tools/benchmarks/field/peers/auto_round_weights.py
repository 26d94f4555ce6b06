"""auto-round: rounding learned by signed gradient descent, at one width or by AutoScheme.

Settings: ``bits``, ``group`` and ``sym``, or ``avg_bits`` and ``options`` for AutoScheme;
``iters`` (0 is its optimized rounding to nearest), ``samples``, and ``head_bits`` to quantize
the output head as well, whose values the tied embedding then shares.
"""

from __future__ import annotations

from typing import Any

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
    rounding = AutoRound(
        model,
        AutoTokenizer.from_pretrained(job.model),
        scheme=_scheme(asked, ids.shape[1]),
        layer_config=_layers(asked),
        dataset=[torch.from_numpy(one)[None] for one in ids],
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


def _scheme(asked: dict[str, Any], length: int) -> Any:
    if "avg_bits" not in asked:
        names = {"bits": asked["bits"], "group_size": asked["group"], "sym": asked["sym"]}
        return {**names, "data_type": "int", "act_bits": 16}
    options = [
        {"bits": bits, "group_size": group, "sym": asked["sym"], "data_type": "int"}
        for bits, group in asked["options"]
    ]
    return AutoScheme(avg_bits=asked["avg_bits"], options=options, seqlen=length)


def _layers(asked: dict[str, Any]) -> dict[str, Any] | None:
    if "head_bits" not in asked:
        return None
    width = {"bits": asked["head_bits"], "group_size": asked["head_group"]}
    return {"lm_head": {**width, "sym": asked["sym"], "data_type": "int"}}


def _hand_back(job: Job, model: torch.nn.Module) -> None:
    weights = dict(model.named_parameters())
    stored = {}
    for name, one in model.named_modules():
        module: Any = one
        bits = getattr(module, "bits", 16)
        if isinstance(module, torch.nn.Linear) and bits < 16:
            zero = 0 if getattr(module, "sym", True) else bits
            group = module.group_size if module.group_size > 0 else module.in_features
            size = grouped_bytes(module.weight.numel(), bits, group, zero)
            key = f"{name}.weight"
            stored[key if key in weights else "model.embed_tokens.weight"] = size
    hand_back(job, weights, stored)


if __name__ == "__main__":
    main()
