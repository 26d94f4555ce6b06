"""The mpqc command: parses words, runs one command, turns failures into exit codes.

Nothing but the parser is imported before a command is known, so that ``--help`` is quick.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import TextIO, cast

from .cli_parser import Misused, parse

_INTERRUPTED = 130
_TERMINATED = 143
_BROKEN_PIPE = 141


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line ``argv``; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if argv is None:
        _prepare_process()
    try:
        return _exit_code(words)
    finally:
        _undo("retry")  # what there was too little memory for


def _exit_code(words: list[str]) -> int:
    try:
        code = _run(words)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        _close_stdout()
        return _BROKEN_PIPE
    except KeyboardInterrupt as stop:
        what = str(stop) or "nothing was written"
        return _fail(words, "interrupted", f"interrupted; {what}", "", _INTERRUPTED)
    except Misused as error:
        return _fail(words, "usage", error.message, error.hint, 2)
    except Exception as error:
        if "--debug" in words:
            import traceback

            traceback.print_exc()
        from .failures import account

        return _fail(words, *account(error))


def _run(words: list[str]) -> int:
    chosen = parse(words)
    if chosen is None:  # --help, --version
        return 0
    from . import cli_commands

    return cli_commands.run(chosen)


def _fail(words: list[str], code: str, message: str, hint: str, exit_code: int) -> int:
    from .progress import plain

    if "--json" in words:
        error = {"code": code, "message": message, "hint": hint}
        print(json.dumps({"ok": False, "error": error}))
    print(f"mpqc: {plain(message)}", file=sys.stderr)
    if hint:
        print(f"      {plain(hint)}", file=sys.stderr)
    return exit_code


def _prepare_process() -> None:
    """Makes output survive poor encodings and hostile names, and termination clean up."""
    from .progress import EscapedStream

    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")
    sys.stderr = cast("TextIO", EscapedStream(sys.stderr))
    with contextlib.suppress(ValueError, AttributeError):
        signal.signal(signal.SIGTERM, _terminate)


def _terminate(number: int, frame: FrameType | None) -> None:
    """Ends the process at once: an exception could be lost in whatever runs just now."""
    del frame
    signal.signal(number, signal.SIG_IGN)
    _undo("undo_all")
    os.write(2, b"mpqc: terminated; what was not finished has been removed\n")
    os._exit(_TERMINATED)


def _undo(what: str) -> None:
    """Calls ``retry`` or ``undo_all`` of ``ir/undoing.py``, if anything has imported it."""
    undoing = sys.modules.get(f"{__package__.rpartition('.')[0]}.ir.undoing")
    if undoing is not None:
        getattr(undoing, what)()


def _close_stdout() -> None:
    """Keeps Python from complaining at exit that nobody reads on."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
