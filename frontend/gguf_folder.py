"""A GGUF file -> a Hugging Face folder with float weights and a tokenizer."""

from __future__ import annotations

import struct
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..ir import InputError, MachineError, staged_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_MAGIC = b"GGUF"
_GROUP = 32  # what GGUF's 4-bit formats share a scale between
_STEPS = 15  # steps of a 4-bit grid between a group's minimum and maximum


def write_gguf_folder(gguf: Path, folder: Path, *, dither_seed: int | None = None) -> Path:
    """Writes the model and tokenizer of ``gguf`` as the Hugging Face folder ``folder``.

    The folder appears whole or not at all.

    Args:
        gguf: A causal language model in a GGUF file that transformers can read.
        folder: Where to write; must not exist, or be empty.
        dither_seed: Seed of the noise that takes the weights off their 4-bit grid (see
            ``dither``); None keeps them as stored.

    Returns:
        ``folder``.

    Raises:
        InputError: ``gguf`` is not a GGUF file, or not one that transformers can read.
        MachineError: transformers or gguf is not installed, or the disk is full.
        UsageError: ``folder`` exists and is not empty.
    """
    _check_magic(gguf)
    with staged_folder(folder, overwrite=False) as stage:
        model, tokenizer = _load(gguf)
        if dither_seed is not None:
            dither(model, seed=dither_seed)
        model.save_pretrained(stage)
        tokenizer.save_pretrained(stage)
    return folder


def dither(model: torch.nn.Module, *, seed: int) -> None:
    """Adds uniform noise of one 4-bit step of its group to every weight of a matrix.

    Weights that come from a 4-bit file lie on its grid: 4-bit storage of them is lossless and
    proves nothing. In each group of 32 along the last axis::

        w  <-  w + (max - min) / 15 * (u - 1/2),    u ~ U(0, 1)

    Parameters are visited in the order of their names, so that one seed gives one model.
    Rows that do not divide into groups are left alone: GGUF cannot have quantized them.

    Args:
        model: Changed in place.
        seed: Seed of the noise.
    """
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, weight in sorted(model.named_parameters()):
            if weight.dim() == 2 and weight.shape[1] % _GROUP == 0:
                groups = weight.view(weight.shape[0], -1, _GROUP)
                step = (groups.amax(-1, keepdim=True) - groups.amin(-1, keepdim=True)) / _STEPS
                groups += step * (torch.rand(groups.shape, generator=source) - 0.5)


def _check_magic(gguf: Path) -> None:
    try:
        with gguf.open("rb") as stream:
            magic = stream.read(len(_MAGIC))
    except OSError as error:
        raise InputError(f"cannot read {gguf}: {error.strerror}") from error
    if magic != _MAGIC:
        raise InputError(
            f"{gguf} is not a GGUF file: it starts with {magic!r}, not {_MAGIC!r}"
        )


def _load(gguf: Path) -> tuple[PreTrainedModel, Any]:
    """Returns the model as an ordinary float model, and its tokenizer."""
    try:
        import_module("gguf")  # transformers would name it only deep in its own traceback
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise MachineError(
            f"reading {gguf.name} needs the package {error.name}",
            hint="pip install 'mpqc[hf]'",
        ) from error
    place: dict[str, Any] = {
        "pretrained_model_name_or_path": gguf.parent,
        "gguf_file": gguf.name,
    }
    try:
        loaded = AutoModelForCausalLM.from_pretrained(dtype=torch.float32, **place)
        return _as_float_model(loaded), AutoTokenizer.from_pretrained(**place)
    except (ValueError, KeyError, OSError, struct.error) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise InputError(f"transformers cannot read {gguf}: {reason}") from error


def _as_float_model(loaded: PreTrainedModel) -> PreTrainedModel:
    """Returns the same network without the mark "quantized", which refuses to be saved."""
    settings = loaded.config.to_dict()
    for key in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        settings.pop(key, None)
    model = type(loaded)(type(loaded.config)(**settings))
    model.load_state_dict(loaded.state_dict())
    model.generation_config = loaded.generation_config
    return model
