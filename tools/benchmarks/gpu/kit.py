"""The folder that is carried to the device: models, samples, and what the CPU made of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ....frontend.array_files import read_arrays
from ....frontend.model_source import read_settings
from ....ir import Feeds, InputError
from ...comparison.files import write_whole

ORIGINAL, HALF, UNIFORM, CUDA, TENSORRT = (
    "original",
    "float16",
    "uniform",
    "ort-cuda",
    "tensorrt",
)
FORMS = (ORIGINAL, HALF, UNIFORM, CUDA, TENSORRT)
BY_RUNTIME, BY_STANDARD = "onnxruntime", "torch"  # what made a reference
_PLAN = "plan.json"
_MODEL = "model.onnx"
_ROWS = 16  # of an output that references keep: a prompt's logits would be larger than a model


@dataclass(frozen=True)
class Form:
    """A form of the model.

    Attributes:
        name: One of ``FORMS``.
        samples: Which samples fit its inputs: ``any`` or ``standard``, as it was exported.
        output: The output that is compared.
        logits: Whether that output has a score for each word.
        size: Bytes of its files.
        bits: Stored bits per weight, float constants counted.
    """

    name: str
    samples: str
    output: str
    logits: bool
    size: int
    bits: float


@dataclass(frozen=True)
class Kit:
    """The folder.

    Attributes:
        folder: Where it is.
        forms: The forms of the model in it, by name.
        runs: What each is run on: ``token``, ``prompt`` and the like.
        facts: What else is known: the model, the budget, versions.
    """

    folder: Path
    forms: Mapping[str, Form]
    runs: tuple[str, ...]
    facts: Mapping[str, Any]

    def model(self, form: Form) -> Path:
        """Returns the ONNX file of a form."""
        return model_in(self.folder, form.name)

    def feed(self, form: Form, run: str) -> Feeds:
        """Returns the sample of a run."""
        return read_arrays(feed_in(self.folder, form.samples, run))

    def reference(self, form: Form, run: str, by: str = BY_RUNTIME) -> np.ndarray:
        """Returns rows of what a form gave on the CPU, which ``rows_of`` chose."""
        return read_arrays(reference_in(self.folder, form.name, by))[run]

    def key(self) -> str:
        """Returns what tells this kit from others."""
        content = [self.folder / _PLAN, *sorted(self.folder.glob("reference-*.npz"))]
        hashed = hashlib.sha256()
        for path in content:
            hashed.update(path.read_bytes())
        return hashed.hexdigest()[:16]


def model_in(folder: Path, form: str) -> Path:
    """Returns where the file of a form is."""
    return folder / form / _MODEL


def feed_in(folder: Path, samples: str, run: str) -> Path:
    """Returns where the sample of a run is."""
    return folder / f"sample-{samples}-{run}.npz"


def reference_in(folder: Path, form: str, by: str) -> Path:
    """Returns where the outputs of a form are that ``by`` made."""
    return folder / f"reference-{form}-{by}.npz"


def texts_in(folder: Path) -> Path:
    """Returns where the files are that forms were calibrated on, if any were given."""
    return folder / "calibration"


def calibration_in(kit: Kit) -> dict[str, Any]:
    """Returns how the model of a kit is calibrated, as options of ``compile``."""
    texts = texts_in(kit.folder)
    files = sorted(texts.iterdir()) if texts.is_dir() else []
    return {**kit.facts.get("calibration", {}), "calibration": files}


def rows_of(output: np.ndarray) -> np.ndarray:
    """Returns at most 16 rows of an output, spread evenly, in float32 [rows, last axis]."""
    rows = output.reshape(-1, output.shape[-1]) if output.ndim else output.reshape(1, 1)
    count = min(_ROWS, len(rows))
    places = [(at + 1) * len(rows) // count - 1 for at in range(count)]
    return np.asarray(rows[places], np.float32)


def write_plan(folder: Path, kit: Kit) -> None:
    """Writes what is in the folder into it."""
    plan = {
        "facts": kit.facts,
        "runs": kit.runs,
        "forms": [asdict(one) for one in kit.forms.values()],
    }
    write_whole(folder / _PLAN, json.dumps(plan, indent=1) + "\n")


def read_kit(folder: Path) -> Kit:
    """Reads what a folder holds.

    Raises:
        InputError: It was not made by ``gpu prepare``.
    """
    try:
        plan = read_settings(folder / _PLAN)
        forms = [Form(**one) for one in plan["forms"]]
        runs = tuple(map(str, plan["runs"]))
        facts = dict(plan["facts"])
    except (InputError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{folder} was not prepared for a device",
            hint="make it: python -m mpqc.tools.benchmarks gpu prepare -o DIR",
        ) from error
    named = {one.name: one for one in forms}
    _check_names(folder, [*named, *runs, *(one.samples for one in forms)])
    return Kit(folder, named, runs, facts)


def _check_names(folder: Path, names: list[str]) -> None:
    """Refuses names that would lead out of the folder."""
    for name in names:
        if not name.replace("-", "").isalnum():
            raise InputError(f"{folder} names {name!r}, which is no name of a file")
