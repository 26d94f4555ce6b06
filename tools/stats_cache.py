"""Where stats live between runs."""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "MPQC_CACHE"


def stats_folder() -> Path | None:
    """Returns the user's folder for stats, made when missing; None where there can be none.

    ``MPQC_CACHE`` names the parent folder; by default it is ``mpqc`` in the XDG cache folder.
    """
    given = os.environ.get(VARIABLE)
    if given:
        home = Path(given)
    else:
        try:
            base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
        except RuntimeError:  # no home folder
            return None
        home = Path(base) / "mpqc"
    folder = home.absolute() / "stats"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None
