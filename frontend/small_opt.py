"""A small OPT model, trained on the spot: for machines that can fetch no pretrained one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..ir import InputError, MachineError, staged_folder

if TYPE_CHECKING:
    from transformers import OPTForCausalLM

Track = Callable[[Iterable[int], int, str], Iterable[int]]

_START = "</s>"  # OPT begins a text with the token that ends one
_WARM_UP = 0.05  # share of the steps in which the learning rate rises


@dataclass(frozen=True)
class SmallOpt:
    """How large the model is, and how it is trained.

    Attributes:
        vocabulary: Tokens.
        width: Channels of the residual stream; feed-forward layers have four times as many.
        layers: Number of layers.
        heads: Attention heads.
        length: Tokens in a sample, and the most that the model reads.
        batch: Samples in a step.
        steps: Steps of AdamW.
        rate: Highest learning rate.
        seed: Seed of weights and samples.
    """

    vocabulary: int = 1024
    width: int = 192
    layers: int = 4
    heads: int = 3
    length: int = 256
    batch: int = 4
    steps: int = 500
    rate: float = 2e-3
    seed: int = 0


def write_small_opt(
    folder: Path, text: str, track: Track, shape: SmallOpt | None = None
) -> Path:
    """Trains an OPT on ``text`` and writes it as the Hugging Face folder ``folder``.

    Its weights, unlike random ones, have something to lose: a few minutes on two cores bring
    the perplexity far below that of word frequencies. The folder appears whole or not at all.

    Args:
        folder: Where to write; must not exist, or be empty.
        text: What to learn.
        track: Shows how far the steps are.
        shape: Size and training.

    Returns:
        ``folder``.

    Raises:
        InputError: The text is too short.
        MachineError: transformers is not installed, or the disk is full.
        UsageError: ``folder`` exists and is not empty.
    """
    shape = shape or SmallOpt()
    try:
        from transformers import OPTConfig, OPTForCausalLM
    except ImportError as error:
        raise MachineError("no transformers", hint="pip install 'mpqc[hf]'") from error
    with staged_folder(folder, overwrite=False) as stage, torch.random.fork_rng(devices=[]):
        torch.manual_seed(shape.seed)
        ids = torch.tensor(_tokenizer(text, shape.vocabulary, stage))
        if len(ids) <= shape.length:
            raise InputError(f"a text of {len(ids)} tokens is too short to learn from")
        settings = OPTConfig(
            vocab_size=shape.vocabulary,
            hidden_size=shape.width,
            word_embed_proj_dim=shape.width,
            ffn_dim=4 * shape.width,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            max_position_embeddings=shape.length,
            dropout=0.0,
            pad_token_id=0,
            bos_token_id=0,
            eos_token_id=0,
        )
        model = OPTForCausalLM(settings)
        _train(model, ids, shape, track)
        model.train(False).save_pretrained(stage)
    return folder


def _tokenizer(text: str, vocabulary: int, folder: Path) -> list[int]:
    """Writes a byte-level BPE of ``text``; returns the text in its tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer: Any = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[_START],
        initial_alphabet=letters,
        show_progress=False,
    )
    tokenizer.train_from_iterator(text.splitlines(keepends=True), trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        f'{{"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "{_START}",'
        f' "eos_token": "{_START}"}}\n',
        encoding="utf-8",
    )
    return list(tokenizer.encode(text).ids)


def _train(model: OPTForCausalLM, ids: torch.Tensor, shape: SmallOpt, track: Track) -> None:
    """Lowers the loss on samples drawn from ``ids``; the learning rate falls like a cosine."""
    places = torch.arange(shape.length)
    steps = torch.optim.AdamW(model.parameters(), shape.rate, (0.9, 0.95), weight_decay=0.1)
    warm = max(1, round(_WARM_UP * shape.steps))
    rate = torch.optim.lr_scheduler.LambdaLR(
        steps,
        lambda at: min((at + 1) / warm, 0.5 + 0.5 * math.cos(math.pi * at / shape.steps)),
    )
    model.train()
    for _ in track(range(shape.steps), shape.steps, "train a small OPT"):
        starts = torch.randint(len(ids) - shape.length, (shape.batch, 1))
        batch = ids[starts + places]
        steps.zero_grad()
        model(input_ids=batch, labels=batch, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        steps.step()
        rate.step()
