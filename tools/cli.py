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

from .cli_parser import Misused, parse

_INTERRUPTED = 130
_TERMINATED = 143
_BROKEN_PIPE = 141


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line ``argv``; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if argv is None:
        _settle_process()
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


def _settle_process() -> None:
    """Makes output survive poor encodings, and termination clean up."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")
    with contextlib.suppress(ValueError, AttributeError):
        signal.signal(signal.SIGTERM, _terminate)


def _terminate(number: int, frame: FrameType | None) -> None:
    del number, frame
    sys.exit(_TERMINATED)


def _close_stdout() -> None:
    """Keeps Python from complaining at exit that nobody reads on."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
