"""Olive's GPTQ, at one width or after its own choice between two.

Settings: ``bits``, ``group``, ``sym``, ``samples``; ``head`` for the output head, whose values
the tied embedding then shares; ``high_bits``, ``ratio`` and ``algorithm`` for
SelectiveMixedPrecision, which keeps a share of the weights at the higher width.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from olive.common.quant.nn import QuantLinear
from olive.data.config import DataConfig
from olive.data.registry import Registry
from olive.model import HfModelHandler
from olive.passes.olive_pass import create_pass_from_dict
from olive.passes.pytorch.gptq import Gptq
from olive.passes.pytorch.selective_mixed_precision import SelectiveMixedPrecision

from .exchange import Job, grouped_bytes, hand_back

_DATA = "mpqc_samples"


def main() -> None:
    """Quantizes the model that the job names."""
    job = Job.given()
    asked = job.settings
    model, batches = HfModelHandler(str(job.model)), _batches(job)
    if "ratio" in asked:
        model = _chosen(asked).run(model, str(job.out / "mixed"))
    settings = {
        **{"bits": asked["bits"], "group_size": asked["group"], "sym": asked["sym"]},
        **{"lm_head": asked["head"], "data_config": batches},
    }
    rounding = create_pass_from_dict(Gptq, settings, disable_search=True)
    result = rounding.run(model, str(job.out / "olive"))
    _hand_back(job, result.load_model())


def _chosen(asked: dict[str, Any]) -> Any:
    settings = {
        **{"algorithm": asked["algorithm"], "ratio": asked["ratio"], "bits": asked["bits"]},
        **{"high_bits": asked["high_bits"], "group_size": asked["group"]},
        **{"sym": asked["sym"]},
    }
    return create_pass_from_dict(SelectiveMixedPrecision, settings, disable_search=True)


def _batches(job: Job) -> DataConfig:
    """Registers the samples as a data set of Olive's."""
    ids = torch.from_numpy(job.samples(job.settings.get("samples")))

    def samples(**options: Any) -> list[tuple[dict[str, torch.Tensor], int]]:
        del options
        mask = torch.ones_like(ids[0])
        return [({"input_ids": one, "attention_mask": mask}, 0) for one in ids]

    Registry.register_dataset(_DATA)(samples)
    return DataConfig(
        name=_DATA,
        load_dataset_config={"type": _DATA},
        pre_process_data_config={"type": "skip_pre_process"},
        post_process_data_config={"type": "skip_post_process"},
        dataloader_config={"type": "default_dataloader", "params": {"batch_size": 1}},
    )


def _hand_back(job: Job, model: torch.nn.Module) -> None:
    weights, stored = {}, {}
    for name, module in model.named_modules():
        if isinstance(module, QuantLinear):
            quantizer = module.quantizer
            zero = 0 if quantizer.symmetric else quantizer.bits
            size = int(np.prod((module.rows, module.cols)))
            key = "model.embed_tokens.weight" if name == "lm_head" else f"{name}.weight"
            weights[key] = _expanded(module)
            stored[key] = grouped_bytes(size, quantizer.bits, quantizer.group_size, zero)
    hand_back(job, weights, stored)


def _expanded(module: QuantLinear) -> torch.Tensor:
    """Returns the matrix that a quantized layer multiplies with, by letting it do so."""
    with torch.no_grad():
        matrix: torch.Tensor = module(torch.eye(module.cols)).T
    return matrix


if __name__ == "__main__":
    main()
