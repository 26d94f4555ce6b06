"""Small models of many kinds, made as their users make them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

VOCABULARY = 320
WIDTH = 64
LENGTH = 16
_SMALL: dict[str, Any] = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


# From transformers configs, with random weights


def opt() -> Any:
    from transformers import OPTConfig, OPTForCausalLM

    config = OPTConfig(
        vocab_size=VOCABULARY,
        ffn_dim=2 * WIDTH,
        word_embed_proj_dim=WIDTH,
        max_position_embeddings=64,
        **_SMALL,
    )
    return OPTForCausalLM(config)


def gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes: dict[str, Any] = {"n_embd": WIDTH, "n_layer": 2, "n_head": 4, "n_positions": 64}
    ends: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2}
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, **sizes, **ends))


def bert() -> Any:
    from transformers import BertConfig, BertModel

    return BertModel(BertConfig(vocab_size=VOCABULARY, intermediate_size=2 * WIDTH, **_SMALL))


def llama(width: int = WIDTH) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        intermediate_size=2 * WIDTH,
        num_key_value_heads=2,
        max_position_embeddings=64,
        **{**_SMALL, "hidden_size": width},
    )
    return LlamaForCausalLM(config)


def vit() -> Any:
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(intermediate_size=2 * WIDTH, image_size=32, patch_size=8, **_SMALL)
    return ViTModel(config)


def whisper(places: int = 24) -> Any:
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    config = WhisperConfig(
        vocab_size=VOCABULARY,
        d_model=WIDTH,
        encoder_layers=2,
        decoder_layers=1,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=2 * WIDTH,
        decoder_ffn_dim=2 * WIDTH,
        num_mel_bins=80,
        max_source_positions=places,
        max_target_positions=24,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    return WhisperForConditionalGeneration(config)


def qwen() -> Any:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=VOCABULARY,
        intermediate_size=2 * WIDTH,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        **_SMALL,
    )
    return Qwen2ForCausalLM(config)


def t5() -> Any:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=VOCABULARY,
        d_model=WIDTH,
        d_kv=16,
        d_ff=2 * WIDTH,
        num_layers=2,
        num_heads=4,
    )
    return T5ForConditionalGeneration(config)


def mixtral() -> Any:
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=VOCABULARY,
        intermediate_size=2 * WIDTH,
        num_key_value_heads=2,
        num_local_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=64,
        **_SMALL,
    )
    return MixtralForCausalLM(config)


def gemma() -> Any:
    """Gemma 3: five layers that look back a few tokens for each that looks back at all."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    config = Gemma3TextConfig(
        vocab_size=VOCABULARY,
        intermediate_size=2 * WIDTH,
        num_key_value_heads=2,
        head_dim=16,
        query_pre_attn_scalar=16,
        sliding_window=8,
        max_position_embeddings=64,
        **{**_SMALL, "num_hidden_layers": 6},
    )
    return Gemma3ForCausalLM(config)


def clip() -> Any:
    from transformers import CLIPConfig, CLIPModel

    tower = {"intermediate_size": 2 * WIDTH, **_SMALL}
    config = CLIPConfig(
        text_config={"vocab_size": VOCABULARY, "max_position_embeddings": 40, **tower},
        vision_config={"image_size": 32, "patch_size": 8, **tower},
        projection_dim=32,
    )
    return CLIPModel(config)


def hugging_face_folder(model: Any, folder: Path) -> Path:
    """Saves a model whose weights are large enough to matter to its outputs."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(4)
    model.eval().save_pretrained(folder)
    return folder


def byte_tokenizer(folder: Path) -> None:
    """Adds a tokenizer whose ids are bytes."""
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers.models import BPE

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE({one: at for at, one in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "!", "bos_token": "!"}'
    )


# Through torch's older exporter


class Language(torch.nn.Module):
    """A transformer layer between an embedding and the head that shares its table."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(VOCABULARY, WIDTH)
        torch.nn.init.normal_(self.table.weight, std=0.3)  # of N(0, 1), logits leave no doubt
        self.heads = torch.nn.Linear(WIDTH, 3 * WIDTH)
        self.mixed = torch.nn.Linear(WIDTH, WIDTH)
        self.up = torch.nn.Linear(WIDTH, 2 * WIDTH)
        self.down = torch.nn.Linear(2 * WIDTH, WIDTH)
        self.norm = torch.nn.LayerNorm(WIDTH)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = self.table(ids)
        batch, tokens, _ = hidden.shape
        split = self.heads(hidden).reshape(batch, tokens, 3, 4, WIDTH // 4)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        chances = torch.softmax(query @ key.transpose(-1, -2) * 0.25, -1)
        seen = (chances @ value).transpose(1, 2).reshape(batch, tokens, WIDTH)
        hidden = hidden + self.mixed(seen)
        hidden = hidden + self.down(torch.relu(self.up(hidden)))
        return torch.nn.functional.linear(self.norm(hidden), self.table.weight)


class Convolutions(torch.nn.Module):
    """Plain, strided, grouped and one-dimensional convolutions, then a head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Sequential(
            torch.nn.Conv2d(3, 32, 7, stride=2, padding=3),
            torch.nn.BatchNorm2d(32),
            torch.nn.ReLU(),
            torch.nn.Conv2d(32, 64, 3, padding=1, bias=False),
            torch.nn.SiLU(),
            torch.nn.Conv2d(64, 64, 3, padding=1, groups=4),
            torch.nn.ReLU(),
            torch.nn.AdaptiveAvgPool2d(1),
            torch.nn.Flatten(),
        )
        self.head = torch.nn.Linear(64, 96)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(self.body(images))
        return found


def by_torchscript(
    module: torch.nn.Module, example: torch.Tensor, path: Path, opset: int
) -> Path:
    """Exports a module as people did for years; the first axis may vary."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(),
            (example,),
            str(path),
            dynamo=False,
            opset_version=opset,
            input_names=["x"],
            output_names=["y"],
            dynamic_axes={"x": {0: "batch"}, "y": {0: "batch"}},
        )
    return path


# By hand


def weight(name: str, *shape: int, seed: int = 0) -> onnx.TensorProto:
    values = np.random.default_rng(seed).standard_normal(shape) / np.sqrt(shape[0])
    return numpy_helper.from_array(values.astype(np.float32), name)


def _save(
    nodes: list[onnx.NodeProto],
    weights: list[onnx.TensorProto],
    path: Path,
    lead: tuple[str | int, ...] = ("batch",),
    last: int = WIDTH,
) -> Path:
    """Writes a model of ``x`` (WIDTH channels) and ``y`` (``last`` channels)."""
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [*lead, channels])
        for name, channels in (("x", WIDTH), ("y", last))
    ]
    graph = helper.make_graph(nodes, "tiny", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString())
    return path


def shared_behind_identity(path: Path) -> Path:
    """One weight that two products read, one of them through an Identity, one a Transpose."""
    nodes = [
        helper.make_node("MatMul", ["x", "shared"], ["a"], "first"),
        helper.make_node("Tanh", ["a"], ["b"], "tanh"),
        helper.make_node("Identity", ["shared"], ["again"], "identity"),
        helper.make_node("MatMul", ["b", "again"], ["c"], "second"),
        helper.make_node("Transpose", ["other"], ["turned"], "turn", perm=[1, 0]),
        helper.make_node("MatMul", ["c", "turned"], ["y"], "third"),
    ]
    return _save(nodes, [weight("shared", 64, 64), weight("other", 64, 64, seed=1)], path)


def in_constant_nodes(path: Path) -> Path:
    """Weights that are outputs of Constant nodes."""
    first, second = weight("", 64, 128), weight("", 128, 64, seed=1)
    nodes = [
        helper.make_node("Constant", [], ["up"], "up_constant", value=first),
        helper.make_node("Constant", [], ["down"], "down_constant", value=second),
        helper.make_node("Gemm", ["x", "up"], ["h"], "up_product", alpha=0.5),
        helper.make_node("Relu", ["h"], ["r"], "relu"),
        helper.make_node("MatMul", ["r", "down"], ["y"], "down_product"),
    ]
    return _save(nodes, [], path)


def with_control_flow(path: Path) -> Path:
    """An If that reads a weight, an LSTM, and ordinary products around them."""
    shape = ("tokens", 1, WIDTH)
    branches = {
        f"{name}_branch": helper.make_graph(
            [helper.make_node(op, ["up", "inside"], [f"{name}_out"], f"{name}_node")],
            name,
            [],
            [helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, shape)],
        )
        for name, op in (("then", "MatMul"), ("else", "MatMul"))
    }
    branches["else_branch"].node[0].input[1] = "outside"
    nodes = [
        helper.make_node("MatMul", ["x", "before"], ["up"], "before_product"),
        helper.make_node("ReduceSum", ["x"], ["sum"], "sum", keepdims=0),
        helper.make_node("Greater", ["sum", "zero"], ["positive"], "greater"),
        helper.make_node("If", ["positive"], ["chosen"], "choose", **branches),
        helper.make_node(
            "LSTM", ["chosen", "kernel", "recurrence"], ["states"], "lstm", hidden_size=32
        ),
        helper.make_node("Squeeze", ["states", "directions"], ["flat"], "squeeze"),
        helper.make_node("MatMul", ["flat", "after"], ["y"], "after_product"),
    ]
    weights = [
        weight("before", WIDTH, WIDTH),
        weight("inside", WIDTH, WIDTH, seed=1),
        weight("outside", WIDTH, WIDTH, seed=2),
        weight("kernel", 1, 128, WIDTH, seed=3),
        weight("recurrence", 1, 128, 32, seed=4),
        weight("after", 32, 128, seed=5),
        numpy_helper.from_array(np.array(0, np.float32), "zero"),
        numpy_helper.from_array(np.array([1], np.int64), "directions"),
    ]
    return _save(nodes, weights, path, ("tokens", 1), 128)
