"""Language models of a given shape with random weights: what costs depend on, and no more."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

_POSITIONS = 2048


@dataclass(frozen=True)
class Shape:
    """The sizes of a decoder as Llama has it, with one table for its ids and its head.

    Attributes:
        layers: Number of layers.
        width: Columns of the residual stream.
        inner: Columns inside the feed-forward part.
        heads: Query heads.
        kv_heads: Heads of keys and values.
        vocabulary: Rows of the table.
    """

    layers: int
    width: int
    inner: int
    heads: int
    kv_heads: int
    vocabulary: int

    @property
    def weights(self) -> int:
        """How many weights its matrices have."""
        return sum(math.prod(shape) for _, shape in self.matrices())

    def matrices(self) -> list[tuple[str, tuple[int, int]]]:
        """Returns names and shapes of all matrices, rows x columns."""
        width, narrow = self.width, self.width // self.heads * self.kv_heads
        parts = {
            "self_attn.q_proj": (width, width),
            "self_attn.k_proj": (narrow, width),
            "self_attn.v_proj": (narrow, width),
            "self_attn.o_proj": (width, width),
            "mlp.gate_proj": (self.inner, width),
            "mlp.up_proj": (self.inner, width),
            "mlp.down_proj": (width, self.inner),
        }
        return [
            ("model.embed_tokens.weight", (self.vocabulary, width)),
            *(
                (f"model.layers.{layer}.{name}.weight", shape)
                for layer in range(self.layers)
                for name, shape in parts.items()
            ),
        ]


SHAPES = {
    "1b": Shape(22, 2048, 5632, 32, 4, 49152),
    "tiny": Shape(2, 64, 128, 4, 2, 320),
}


def write_shape(shape: Shape, folder: Path, seed: int = 0) -> Path:
    """Writes a Hugging Face folder, without a tokenizer; weights are bfloat16.

    Args:
        shape: The sizes.
        folder: Where to write; it must not be there.
        seed: Seed of the weights, which are as large as those of a fresh model.
    """
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: torch.randn(size, generator=generator).div_(size[1] ** 0.5).bfloat16()
        for name, size in shape.matrices()
    }
    norms = ["model.norm.weight"]
    for layer in range(shape.layers):
        norms.append(f"model.layers.{layer}.input_layernorm.weight")
        norms.append(f"model.layers.{layer}.post_attention_layernorm.weight")
    tensors |= {name: torch.ones(shape.width, dtype=torch.bfloat16) for name in norms}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": shape.layers,
        "hidden_size": shape.width,
        "intermediate_size": shape.inner,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": _POSITIONS,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    return folder
