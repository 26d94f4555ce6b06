"""A model with its samples, ready for passes to be run on by hand."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...frontend.model_source import locate
from ...ir import temporary_folder
from ..budget import Budget
from ..comparison.methods import settings_for
from ..compilation import Compilation, prepare
from ..option_fields import options_in
from ..options import CalibrationOptions
from ..progress import choose_progress
from ..watch import Watch


@contextmanager
def job(chosen: argparse.Namespace, cache: Path) -> Iterator[Compilation]:
    """Prepares what ``mpqc compile`` would work on, with the stats in ``cache``."""
    options = CalibrationOptions(**options_in(chosen, CalibrationOptions))
    settings = settings_for(Budget(4.0), options)
    cache.mkdir(parents=True, exist_ok=True)
    with temporary_folder() as scratch:
        source, shown = locate(chosen.model), choose_progress()
        yield prepare(source, settings, scratch, cache, shown, Watch())
