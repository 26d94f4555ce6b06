"""Whether a run has room, and the setting with which it would."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...passes.engine.execution.memory import available_memory
from .forecast import Step

_SHOWN = 1e9


@dataclass(frozen=True)
class Room:
    """What a run needs, or what there is.

    Attributes:
        memory: Bytes of memory beyond what is held already; None if nobody can tell.
        cache: Bytes on the disk of the cache.
        work: Bytes on the disk of the result and of temporary files; None where it is the
            same disk, whose bytes ``cache`` counts.
    """

    memory: float | None
    cache: float
    work: float | None

    def lacks(self, needed: Room) -> list[str]:
        """Returns in words what there is too little of for what is needed."""
        disk = "disk for the cache" if self.work is not None else "disk"
        pairs = [
            ("memory", needed.memory, self.memory),
            (disk, needed.cache, self.cache),
            ("disk for the result and temporary files", needed.work, self.work),
        ]
        return [
            f"{what}: {asked / _SHOWN:.2f} GB are needed, {there / _SHOWN:.2f} GB are free"
            for what, asked, there in pairs
            if asked is not None and there is not None and asked > there
        ]


@dataclass(frozen=True)
class Places:
    """Where a run writes.

    Attributes:
        cache: The folder of the cache; it need not exist.
        work: That of the result.
    """

    cache: Path
    work: Path

    @property
    def _shared(self) -> bool:
        return _existing(self.cache).stat().st_dev == _existing(self.work).stat().st_dev

    def free(self) -> Room:
        """Returns what can still be taken."""
        work = None if self._shared else float(shutil.disk_usage(_existing(self.work)).free)
        cache = float(shutil.disk_usage(_existing(self.cache)).free)
        return Room(available_memory(), cache, work)

    def needed(self, steps: Sequence[Step], base: float) -> Room:
        """Returns what steps take, beyond ``base`` bytes of memory."""
        memory = max((one.memory for one in steps), default=base) - base
        cache = sum(one.kept for one in steps)
        scratch = max((one.scratch for one in steps), default=0.0)
        if self._shared:
            return Room(memory, cache + scratch, None)
        return Room(memory, cache, scratch)


def _existing(folder: Path) -> Path:
    """Returns the folder, or what of its path exists."""
    place = Path(os.path.abspath(folder))
    return next(one for one in (place, *place.parents) if one.exists())
