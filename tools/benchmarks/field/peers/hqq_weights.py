"""HQQ, the library, on the linear layers: widths for which ONNX Runtime has no kernel too.

Settings: ``bits``, ``group``, and ``head_bits`` for the output head, whose values the tied
embedding then shares.
"""

from __future__ import annotations

from typing import Any

import torch
from hqq.core.quantize import Quantizer
from transformers import AutoModelForCausalLM

from .exchange import Job, grouped_bytes, hand_back


def main() -> None:
    """Quantizes the model that the job names."""
    job = Job.given()
    model: Any = AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.float32)
    names = {id(value): name for name, value in model.named_parameters()}
    weights, stored = {}, {}
    for module in model.modules():
        bits = _width(module, model, job.settings)
        if bits:
            name, weight = names[id(module.weight)], module.weight.detach()
            group = job.settings["group"]
            codes, facts = Quantizer.quantize(
                weight,
                nbits=bits,
                group_size=group,
                axis=1,
                device="cpu",
                compute_dtype=torch.float32,
            )
            weights[name] = Quantizer.dequantize(codes, facts)
            stored[name] = grouped_bytes(weight.numel(), bits, group, 16)
    hand_back(job, weights, stored)


def _width(module: Any, model: Any, asked: dict[str, Any]) -> int:
    """Returns the width at which a module is stored; 0 for one that is left alone."""
    if not isinstance(module, torch.nn.Linear):
        return 0
    if module is model.get_output_embeddings():
        return int(asked.get("head_bits", 0))
    return int(asked["bits"])


if __name__ == "__main__":
    main()
