"""Runs a model in ONNX Runtime's packages for JavaScript, where they are installed."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

_HERE = Path(__file__).parent / "javascript"
_TYPES = {"float32": np.float32, "int64": np.int64, "int32": np.int32, "bool": np.bool_}


def lacking(package: str) -> str:
    """Returns why ``package`` cannot run here, "" if it can."""
    if shutil.which("node") is None:
        return "needs Node.js"
    if not (_HERE / "node_modules" / package).is_dir():
        return f"needs {package}: `make javascript` installs it"
    return ""


def run(package: str, model: Path, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the outputs of one run of ``model``."""
    inputs, outputs = (model.parent.with_suffix(f".{word}.json") for word in ("in", "out"))
    inputs.write_text(json.dumps({name: _plain(array) for name, array in feeds.items()}))
    script = str(_HERE / "run.mjs")
    words = ["node", script, package, str(model), str(inputs), str(outputs)]
    ended = subprocess.run(words, check=False, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    written = json.loads(outputs.read_text())
    return {name: _array(one) for name, one in written.items()}


def _plain(array: np.ndarray) -> dict[str, object]:
    data = base64.b64encode(array.tobytes()).decode()
    return {"type": array.dtype.name, "dims": list(array.shape), "data": data}


def _array(one: dict[str, Any]) -> np.ndarray:
    data = base64.b64decode(one["data"])
    return np.frombuffer(data, _TYPES[one["type"]]).reshape(one["dims"])
