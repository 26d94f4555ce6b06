"""Results of long work kept in files, used again only when nothing about them is in doubt."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .errors import InputError
from .machine_errors import machine_errors
from .sealed_file import read_label, read_seal, write_sealed

_INSTEAD = "set MPQC_CACHE to another folder"


@dataclass(frozen=True)
class CachedFile:
    """A file that is named by what its content depends on, and proves that it is that.

    Attributes:
        path: Where it is or belongs.
    """

    path: Path

    @classmethod
    def of(cls, folder: Path, *inputs: object) -> CachedFile:
        """Returns the file in ``folder`` whose content depends on ``inputs``, by their text.

        Raises:
            MachineError: The folder is missing and cannot be made.
        """
        with machine_errors(folder, _INSTEAD):
            folder.mkdir(parents=True, exist_ok=True)
        text = "\n".join(map(str, inputs))
        return cls(folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.safetensors")

    @property
    def key(self) -> str:
        """Names what the content depends on."""
        return self.path.stem

    def facts(self, say: Callable[[str], None]) -> dict[str, Any] | None:
        """Returns what the file says of itself; None if there is none that can be trusted.

        A file that is damaged, or that belongs elsewhere, is removed.

        Args:
            say: Told when a file is removed.
        """
        if not self.path.is_file():
            return None
        try:
            seal = read_seal(self.path)
        except InputError as error:
            why = error.message
        else:
            if seal.key == self.key:
                return seal.facts
            why = f"{self.path} was made for something else"
        say(f"{why}; it is thrown away and made again")
        with suppress(OSError):
            self.path.unlink()
        return None

    def peek(self) -> dict[str, Any] | None:
        """Returns what the file says of itself, for those who only look; None without one.

        Neither is the content checked nor anything changed on disk.
        """
        try:
            with self.path.open("rb") as file:
                key, facts = read_label(file)
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None
        return facts if key == self.key else None

    def write(
        self,
        arrays: Mapping[str, np.ndarray],
        facts: Mapping[str, Any],
        *,
        lasting: bool = True,
    ) -> None:
        """Writes arrays and facts, complete or not at all.

        Args:
            arrays: Arrays by name.
            facts: What the file says of itself.
            lasting: Whether the file has to survive a power cut; its checksum tells if not.

        Raises:
            MachineError: The disk is full or the folder cannot be written.
        """
        with machine_errors(self.path, _INSTEAD):
            write_sealed(self.path, self.key, arrays, facts, lasting=lasting)
