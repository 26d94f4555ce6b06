"""Where the model is: an ONNX file, a folder around one, or a Hugging Face folder."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from ..ir import InputError

COMPANIONS = (
    "1_Pooling/config.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "config.json",
    "config_sentence_transformers.json",
    "genai_config.json",
    "generation_config.json",
    "merges.txt",
    "modules.json",
    "preprocessor_config.json",
    "processor_config.json",
    "sentence_bert_config.json",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)
_LARGEST_COMPANION = 256 << 20
_LARGEST_SETTINGS = 4 << 20
_PREFERRED = ("model.onnx", "onnx/model.onnx")
_VERSIONED = (
    "[0-9]*/model.onnx",
    "*/[0-9]*/model.onnx",
)  # of a model; of a repository of models


@dataclass(frozen=True)
class Source:
    """A model as the user named it.

    Attributes:
        named: The path that the user named.
        onnx: The ONNX file; None for a Hugging Face folder, which has to be exported first.
        folders: Where companion files may stand, nearest first.
    """

    named: Path
    onnx: Path | None
    folders: tuple[Path, ...]

    def companions(self) -> dict[str, Path]:
        """Returns the tokenizer and settings files beside the model, by relative name."""
        found: dict[str, Path] = {}
        for name in COMPANIONS:
            for folder in self.folders:
                path = folder / name
                if path.is_file() and _is_plain(path, folder):
                    found.setdefault(name, path)
        return found

    def settings(self, name: str) -> dict[str, Any]:
        """Returns a companion JSON file as a mapping; empty when there is none."""
        path = self.companions().get(name)
        return read_settings(path) if path is not None else {}


def locate(named: Path) -> Source:
    """Finds the model that ``named`` means.

    Raises:
        InputError: There is no model, or several that could be meant.
    """
    # An absolute path matters: libraries skip their own path checks for a bare file name.
    path = named.absolute()
    try:
        if path.is_dir():
            return _in_folder(named, path)
        if path.is_file():
            return Source(named, path, (path.parent,))
        exists = path.exists()
    except OSError as error:
        raise InputError(f"cannot read {named}: {error.strerror}") from error
    if exists:
        raise InputError(
            f"{named} is not an ordinary file", hint="name an .onnx file or a folder"
        )
    raise InputError(f"{named} does not exist", hint="name an .onnx file or a model folder")


def read_settings(path: Path) -> dict[str, Any]:
    """Reads a JSON object of bounded size.

    Raises:
        InputError: The file is too large, no JSON, or no object.
    """
    try:
        if path.exists() and not path.is_file():
            raise InputError(f"{path} is no ordinary file")
        if path.stat().st_size > _LARGEST_SETTINGS:
            raise InputError(f"{path} is larger than {_LARGEST_SETTINGS} bytes")
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no JSON object")
    return content


def section(settings: Mapping[str, Any], *keys: str) -> Mapping[str, Any]:
    """Returns the object under ``keys`` of a JSON object; empty when it is not there.

    Raises:
        InputError: Something else stands there.
    """
    found: Any = settings
    for key in keys:
        found = found.get(key)
        if found is None:
            return {}
        if not isinstance(found, dict):
            raise InputError(
                f"{key!r} in the model's settings is {found!r:.60}, no JSON object"
            )
    return cast("Mapping[str, Any]", found)


def architectures(settings: Mapping[str, Any]) -> list[str]:
    """Returns the classes that a config.json names.

    Raises:
        InputError: It names something else.
    """
    names = settings.get("architectures")
    names = [] if names is None else names
    if not isinstance(names, list) or not all(isinstance(one, str) for one in names):
        raise InputError(f"'architectures' in config.json is {names!r:.60}, no list of names")
    return names


def is_inside(path: Path, folder: Path) -> bool:
    """Returns whether ``path`` stays in ``folder``.

    The Hugging Face cache links files from ``snapshots/<commit>`` into ``blobs`` of the same
    repository; that counts as inside.
    """
    real, home = path.resolve(), folder.resolve()
    if real.is_relative_to(home):
        return True
    hub = next((one for one in home.parents if one.name == "snapshots"), None)
    return hub is not None and real.parent == hub.parent / "blobs"


def _is_plain(path: Path, folder: Path) -> bool:
    return is_inside(path, folder) and path.stat().st_size <= _LARGEST_COMPANION


def _in_folder(named: Path, folder: Path) -> Source:
    files = sorted({*folder.glob("*.onnx"), *folder.glob("onnx/*.onnx")})
    files = files or _newest_versions(folder)
    inside = [path for path in files if path.is_file() and is_inside(path, folder)]
    if inside:
        chosen = _choose(named, folder, inside)
        folders = (folder,) if chosen.parent == folder else (chosen.parent, folder)
        return Source(named, chosen, folders)
    if (folder / "config.json").is_file():
        return Source(named, None, (folder,))
    raise InputError(
        f"{named} holds no model",
        hint="a model folder has an .onnx file, or config.json with safetensors weights",
    )


def _newest_versions(folder: Path) -> list[Path]:
    """Returns the newest version of every model in a model repository, or of one of them."""
    newest: dict[Path, Path] = {}
    for pattern in _VERSIONED:
        for path in folder.glob(pattern):
            home = path.parent
            if home.name.isdecimal() and _is_newer(home, newest.get(home.parent)):
                newest[home.parent] = path
    return sorted(newest.values())


def _is_newer(home: Path, known: Path | None) -> bool:
    return known is None or int(home.name) > int(known.parent.name)


def _choose(named: Path, folder: Path, files: list[Path]) -> Path:
    names = {path.relative_to(folder).as_posix(): path for path in files}
    for preferred in _PREFERRED:
        if preferred in names:
            return names[preferred]
    if len(files) > 1:
        listed = ", ".join(_first(iter(names), 8))
        raise InputError(
            f"{named} holds several ONNX files: {listed}", hint="name the one that you mean"
        )
    return files[0]


def _first(names: Iterator[str], count: int) -> list[str]:
    listed = [name for _, name in zip(range(count), names, strict=False)]
    return [*listed, "..."] if next(names, None) is not None else listed
