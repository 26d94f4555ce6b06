"""Where stats live between runs."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from ..ir import temporary_folder

VARIABLE = "MPQC_CACHE"


def stats_folder(chosen: Path | str | None, say: Callable[[str], None]) -> Path | None:
    """Returns the folder for stats, made when missing; None where there can be none.

    Args:
        chosen: The folder; by default ``stats`` in that which ``MPQC_CACHE`` names, or in
            ``mpqc`` in the XDG cache folder.
        say: Told why there can be none.
    """
    folder = stats_place(chosen)
    if folder is None:
        say(f"nothing is cached: there is no home folder; {VARIABLE} can name another")
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with temporary_folder(folder):  # proves that it can be written
            return folder.absolute()
    except OSError as error:
        say(f"nothing is cached: cannot write to {folder}: {error.strerror}")
        return None


def stats_place(chosen: Path | str | None) -> Path | None:
    """Returns where stats are or would be; None where there is no place. Makes nothing."""
    own = cache_folder()
    return Path(chosen) if chosen is not None else own and own / "stats"


def cache_folder() -> Path | None:
    """Returns the folder of everything that is cached; None where there is no home folder."""
    given = os.environ.get(VARIABLE)
    if given:
        return Path(given).absolute()
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):  # which the XDG specification wants ignored
        home = os.path.expanduser("~")
        if not os.path.isabs(home):
            return None
        base = os.path.join(home, ".cache")
    return Path(base) / "mpqc"
