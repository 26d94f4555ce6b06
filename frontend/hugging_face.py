"""A Hugging Face folder -> ONNX.

Decoders go through onnxruntime-genai's model builder; what it cannot build, and every other
model, goes through torch.export. No code from the folder is run, and no weights are unpickled:
the exporters see links to the harmless files only.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from ..ir import InputError, MachineError
from ..ir.undoing import undone
from .model_source import COMPANIONS, architectures, is_inside, read_settings
from .text import has_tokenizer

Route = Literal["genai-builder", "torch-export"]
Say = Callable[[str], None]

_CODE_KEYS = ("auto_map", "custom_pipelines", "trust_remote_code")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_INDEX = "model.safetensors.index.json"
_EXPORT_SECONDS = 3600


def export_folder(folder: Path, stage: Path, say: Say, *, standard: bool = False) -> Route:
    """Writes ``folder``'s model as ``stage/model.onnx`` (+ data), companion files beside it.

    Args:
        folder: Holds config.json and safetensors weights.
        stage: An empty folder; a failed export leaves rubbish in it.
        say: Gets a line if a part of the model is not exported.
        standard: Whether only operators of the ONNX standard will do.

    Returns:
        The exporter that was used.

    Raises:
        InputError: The folder is unsafe, incomplete, or of a kind that nothing can export.
        MachineError: A package is missing, or there is too little memory or space.
    """
    settings = check_folder(folder)
    links = stage / ".input"
    _link_harmless(folder, links)
    try:
        builds = not standard and _is_decoder(settings) and _has_tokenizer(links)
        if builds and _build(links, stage):
            return "genai-builder"
        _export(links, stage, settings, say)
        return "torch-export"
    finally:
        shutil.rmtree(links, ignore_errors=True)


def check_folder(folder: Path) -> dict[str, Any]:
    """Refuses a folder that asks for code to be run, and returns its config.json.

    Raises:
        InputError: It does, or lacks weights in a safe format.
    """
    settings = read_settings(folder / "config.json")
    for name in ("config.json", "tokenizer_config.json", "preprocessor_config.json"):
        if (folder / name).is_file():
            _refuse_code(folder / name, read_settings(folder / name))
    if settings.get("quantization_config"):
        raise InputError(f"{folder} is already quantized", hint="give the float model")
    weights = sorted(folder.glob("*.safetensors"))
    pickles = sorted(one for one in folder.iterdir() if one.suffix in _PICKLES)
    if not weights and pickles:
        raise InputError(
            f"{pickles[0]} is a pickle, which can run code when it is read",
            hint="convert the weights to safetensors (save_pretrained does it)",
        )
    if not weights:
        raise InputError(f"{folder} has config.json but no .safetensors weights")
    _check_index(folder)
    architectures(settings)
    return settings


def _refuse_code(path: Path, settings: Mapping[str, Any]) -> None:
    """Refuses keys that name code; transformers has run some of them without being asked."""
    waiting: list[Any] = [settings]
    while waiting:
        content = waiting.pop()
        if isinstance(content, list):
            waiting += content
        if not isinstance(content, dict):
            continue
        for key, value in content.items():
            chosen = str(key).startswith("_attn_implementation") and not isinstance(
                value, bool
            )
            if (key in _CODE_KEYS and value) or (chosen and value is not None):
                raise InputError(
                    f"{path} asks for code to be run: it has the key {key!r}",
                    hint="remove the key if the model works without it",
                )
            waiting.append(value)


def _check_index(folder: Path) -> None:
    index = folder / _INDEX
    if not index.is_file():
        return
    files = read_settings(index).get("weight_map", {})
    files_here = {path.name for path in folder.iterdir() if path.is_file()}
    for name in sorted(set(map(str, files.values())) if isinstance(files, dict) else {""}):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise InputError(f"{index} names the unsafe path {name[:200]!r}")
        if name not in files_here:
            raise InputError(f"{index} names {name[:200]!r}, which is missing")


def _link_harmless(folder: Path, links: Path) -> None:
    """Makes ``links`` a view of ``folder`` without code, pickles and escaping links."""
    links.mkdir()
    weights = {path.name for path in folder.glob("*.safetensors")}
    for name in sorted({*COMPANIONS, _INDEX, *weights} - {"1_Pooling/config.json"}):
        path = folder / name
        if not path.is_file():
            continue
        if not is_inside(path, folder):
            raise InputError(f"{path} is a link that leaves the folder")
        (links / name).symlink_to(path.resolve())


def _is_decoder(settings: Mapping[str, Any]) -> bool:
    return any(name.endswith("ForCausalLM") for name in architectures(settings))


def _has_tokenizer(folder: Path) -> bool:
    return has_tokenizer({path.name: path for path in folder.iterdir()})


def _build(folder: Path, stage: Path) -> bool:
    """Runs the model builder in its own process; False when it cannot build the model.

    It fails in many ways at models that it does not know, and at versions of config.json that
    are newer than it is.
    """
    if find_spec("onnxruntime_genai") is None:
        raise MachineError(
            "exporting a decoder needs onnxruntime-genai", hint="pip install 'mpqc[hf]'"
        )
    cache = stage / ".cache"
    cache.mkdir()
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder"]
    command += [
        "-i",
        str(folder),
        "-o",
        str(stage),
        "-c",
        str(cache),
        "-p",
        "fp32",
        "-e",
        "cpu",
    ]
    command += ["--extra_options", "hf_token=false", "hf_remote=false"]
    try:
        done = _run(command, cache)
    finally:
        shutil.rmtree(cache, ignore_errors=True)
    if done.returncode == 0 and (stage / "model.onnx").is_file():
        _keep_only(stage, {"model.onnx", "model.onnx.data", *COMPANIONS})
        _add_companions(folder, stage)
        return True
    _refuse_machine(done)
    _keep_only(stage, set())
    return False


def _run(command: list[str], home: Path) -> subprocess.CompletedProcess[str]:
    """Runs a command in ``home``; it does not outlive this process."""
    child = subprocess.Popen(
        command,
        env=dict(_environment(home)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        cwd=home,
    )
    with child, undone(child.kill):
        try:
            said = child.communicate(timeout=_EXPORT_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise MachineError(
                f"the model builder ran for more than {error.timeout:.0f} s"
            ) from error
    return subprocess.CompletedProcess(command, child.returncode, *said)


def _keep_only(stage: Path, names: set[str]) -> None:
    """Removes the leftovers of the builder and its libraries."""
    for path in stage.iterdir():
        if path.is_file() and path.name not in names:
            path.unlink()


def _add_companions(folder: Path, stage: Path) -> None:
    """Copies the files that the builder leaves behind, config.json among them."""
    for name in COMPANIONS:
        if (folder / name).is_file() and not (stage / name).exists():
            shutil.copyfile(folder / name, stage / name)


def _refuse_machine(done: subprocess.CompletedProcess[str]) -> None:
    """Raises MachineError if the builder failed for want of memory or space."""
    if done.returncode < 0:
        raise MachineError(
            f"the model builder was killed by signal {-done.returncode}",
            hint="it may have run out of memory",
        )
    last = next((one for one in reversed(done.stderr.splitlines()) if one.strip()), "")
    if "No space left" in last:
        raise MachineError(f"the disk is full: {last.strip()}")


def _environment(cache: Path) -> Iterator[tuple[str, str]]:
    """Yields the variables that the builder needs; nothing that points out of the stage."""
    for name in ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "SYSTEMROOT", "LANG", "LC_ALL"):
        if name in os.environ:
            yield name, os.environ[name]
    yield from {
        "HOME": str(cache),
        "TMPDIR": str(cache),
        "HF_HOME": str(cache),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }.items()


def _export(folder: Path, stage: Path, settings: Mapping[str, Any], say: Say) -> None:
    from .transformers_model import export_model

    export_model(folder, stage, settings, say)
