"""The commands to running processes: ask, and show the answer. Loads nothing heavy."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import TYPE_CHECKING, Final

from tunnel.errors import Exit, StateError, TunnelError
from tunnel.ops.control.processes import (
    NotRunningError,
    Process,
    find,
    find_all,
    greet_all,
)
from tunnel.ops.control.status_text import (
    Fields,
    listed,
    number,
    ps_lines,
    status_lines,
    text,
)
from tunnel.ops.control.why_text import why_line, why_lines
from tunnel.ops.standard import lost_output
from tunnel.ops.texts import explained, shown

if TYPE_CHECKING:
    from collections.abc import Iterable

GONE_S: Final = 0.05
"""How often to look whether a process has ended: it takes some ten of these."""
VARIABLES: Final = ("TUNNEL_JSON",)
"""Variables that mean something to these commands."""
_NO_LINK: Final = ("waiting", "connecting")


def ps(*, as_json: bool = False) -> Exit:
    """List the processes of this user."""
    known = greet_all()
    for _process, answer in known:
        if isinstance(answer, TunnelError):
            _warn(answer)
        elif as_json:
            _print(json.dumps(answer))
        else:
            _print_all(ps_lines([answer]))
    if not known:
        raise NotRunningError("nothing of tunnel runs here for this user")
    return _written()


def status(
    name: str | None = None, *, as_json: bool = False, quiet: bool = False
) -> Exit:
    """Show what processes do; with ``quiet`` only the exit status says it.

    That is 0 if all are well, ``NOT_REACHED`` if a client has no link.
    """
    worst = Exit.OK
    for at, process in enumerate(find_all(name)):
        answer = process.ask("status")
        if quiet:
            if text(answer, "state") in _NO_LINK:
                worst = Exit.NOT_REACHED
        elif as_json:
            _print(json.dumps(answer))
        else:
            _print_all([""] if at else [])
            _print_all(status_lines(answer))
    return worst if quiet else _written()


def stop(name: str | None = None) -> Exit:
    """End a process at once, and wait until it is gone."""
    return _end("stop", name)


def drain(name: str | None = None) -> Exit:
    """Have a process take nothing new, and wait until it is gone."""
    return _end("drain", name)


def _end(how: str, name: str | None) -> Exit:
    process = find(name)
    process.ask(how)
    while process.is_there:
        time.sleep(GONE_S)
    return Exit.OK


def retry(name: str | None = None) -> Exit:
    """Have a client try again now to make its link."""
    process = find(name, "up")
    if not process.ask("retry").get("tried"):
        _print(f"{process.name} has a link")
    return _written()


def reload(name: str | None = None) -> Exit:
    """Have a process read its file again; shows what has changed."""
    process = find(name)
    answer = process.ask("reload")
    changes = answer.get("changes")
    for line in changes if isinstance(changes, list) else []:
        _print(shown(str(line)))
    return _written()


def logs(name: str | None = None) -> Exit:
    """Show the last lines of a process's log."""
    _log_lines(find(name), 0)
    return _written()


def _log_lines(process: Process, after: int) -> int:
    """Show the lines behind one; return the number of the last."""
    for line in listed(process.ask("logs", after=after), "lines"):
        _print(shown(text(line, "text")))
        after = int(number(line, "number"))
    return after


def why(connection: str | None = None, *, as_json: bool = False) -> Exit:
    """Show what one connection waits for, as each end here tells, or list all."""
    told: list[tuple[str, Fields]] = []
    refused: TunnelError | None = None
    key = "listed" if connection is None else "found"
    for process in find_all(None):
        try:
            answer = process.ask("why", connection=connection or "")
        except NotRunningError:
            pass  # it has just ended
        except TunnelError as error:
            refused = error
        else:
            told += [(process.name, one) for one in listed(answer, key)]
    if refused is not None and not told:
        raise refused
    for name, one in told:
        if as_json:
            _print(json.dumps({"process": name, **one}))
        else:
            lines = (
                [why_line(one, name)] if connection is None else why_lines(one, name)
            )
            _print_all(map(shown, lines))
    return _written()


# Writing -----------------------------------------------------------------------------


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")


def _print_all(lines: Iterable[str]) -> None:
    for line in lines:
        _print(line)


def _warn(error: TunnelError) -> None:
    sys.stderr.write(explained(f"warning: {error.what}", error))


def _written() -> Exit:
    """Return success, once everything was written.

    Raises:
        StateError: it was not: this command exists only to print.
    """
    sys.stdout.flush()
    if (lost := lost_output()) is not None:
        raise StateError("the answer was not written", lost.strerror or str(lost))
    return Exit.OK


# Without the command line's own parser -----------------------------------------------

_FLAGS: Final[dict[str, set[str]]] = {
    "ps": {"--json"},
    "status": {"--json", "--quiet"},
    "stop": set(),
    "drain": set(),
    "retry": set(),
    "reload": set(),
    "logs": set(),
    "why": {"--json"},
}
"""The commands that are done here, and their flags."""


def quick(words: list[str]) -> int | None:
    """Do a command whose words are plain, and return its exit status.

    None: these words are for the whole parser, which takes a quarter of a second to
    load: another command, a variable, a request for help, a fault.
    """
    command = words[0] if words else ""
    if command not in _FLAGS or any(name in os.environ for name in VARIABLES):
        return None
    names = [word for word in words[1:] if not word.startswith("-")]
    flags = {word for word in words[1:] if word.startswith("-")}
    most = 0 if command == "ps" else 1
    if not flags <= _FLAGS[command] or len(names) > most or not all(names):
        return None
    try:
        return _do(command, names[0] if names else None, flags)
    except TunnelError as error:
        sys.stderr.write(explained(f"error: {error.what}", error))
        return error.exit_status
    except KeyboardInterrupt:
        return Exit.INTERRUPTED


def _do(command: str, name: str | None, flags: set[str]) -> Exit:
    match command:
        case "ps":
            return ps(as_json="--json" in flags)
        case "status":
            return status(name, as_json="--json" in flags, quiet="--quiet" in flags)
        case "stop":
            return stop(name)
        case "drain":
            return drain(name)
        case "retry":
            return retry(name)
        case "reload":
            return reload(name)
        case "why":
            return why(name, as_json="--json" in flags)
        case _:
            return logs(name)
