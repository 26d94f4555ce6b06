"""A model with its samples, ready for passes to be run on by hand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ...frontend.model_source import locate
from ...ir import temporary_folder
from ..compilation import Compilation, prepare
from ..progress import choose_progress
from ..settings import make_settings
from ..watch import Watch

CALIBRATE = "normalize,partition-blocks,calibrate"


@contextmanager
def job(
    model: Path,
    calibration: Sequence[Path],
    cache: Path,
    *,
    samples: int | None,
    sequence_length: int | None,
    target: str,
) -> Iterator[Compilation]:
    """Prepares what ``mpqc compile`` would work on, with the stats in ``cache``."""
    settings = make_settings(
        4.0,
        calibration=calibration,
        samples=samples,
        sequence_length=sequence_length,
        target=target,
    )
    cache.mkdir(parents=True, exist_ok=True)
    with temporary_folder() as scratch:
        source, shown = locate(model), choose_progress()
        yield prepare(source, settings, scratch, cache, shown, Watch())
