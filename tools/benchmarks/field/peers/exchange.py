"""What a script is told and what it hands back; needs numpy only.

A script is run as ``python -m peers.NAME JOB.json`` in its tool's environment. It leaves in
``Job.out`` one of two things:

- ``model.onnx``, the tool's own ONNX file;
- ``weights.safetensors`` and ``stored.json`` (`hand_back`): parameters by their names in the
  Hugging Face folder, expanded to floats again, and what the tool stores for them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch


@dataclass(frozen=True)
class Job:
    """What to do.

    Attributes:
        model: The Hugging Face folder.
        onnx: The same model as an exported ONNX file.
        ids: File of token ids to calibrate on, int64, samples x length.
        settings: What the entry asks of the tool.
        out: Where to leave the result; an empty folder.
    """

    model: Path
    onnx: Path
    ids: Path
    settings: dict[str, Any]
    out: Path

    def write(self, path: Path) -> None:
        """Writes the job to a file."""
        facts = {name: str(value) for name, value in vars(self).items()}
        path.write_text(json.dumps({**facts, "settings": self.settings}), encoding="utf-8")

    @classmethod
    def given(cls) -> Job:
        """Returns the job that the command line names."""
        facts = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
        paths = {name: Path(facts[name]) for name in ("model", "onnx", "ids", "out")}
        return cls(settings=facts["settings"], **paths)

    def samples(self, most: int | None = None) -> np.ndarray:
        """Returns the token ids, evenly thinned to ``most`` samples."""
        import numpy as np

        ids: np.ndarray = np.load(self.ids, allow_pickle=False)
        if most is None or most >= len(ids):
            return ids
        chosen: np.ndarray = ids[np.linspace(0, len(ids) - 1, most).round().astype(int)]
        return chosen


def hand_back(
    job: Job, weights: Mapping[str, torch.Tensor], stored: Mapping[str, float]
) -> None:
    """Leaves expanded weights and the bytes that the tool stores for them.

    Args:
        job: The job.
        weights: Parameters that are not what they were, by name in the folder.
        stored: Bytes by parameter, of those that the tool quantized.
    """
    from safetensors.torch import save_file

    dense = {name: tensor.detach().float().contiguous() for name, tensor in weights.items()}
    save_file(dense, job.out / "weights.safetensors")
    (job.out / "stored.json").write_text(json.dumps(dict(stored)), encoding="utf-8")


def grouped_bytes(weights: int, bits: float, group: int, zero_bits: float = 0.0) -> float:
    """Returns the bytes of ``weights`` codes with a 16-bit scale (and zero point) a group."""
    return weights * (bits + (16 + zero_bits) / group) / 8
