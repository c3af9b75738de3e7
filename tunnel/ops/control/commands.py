"""The commands to running processes: ask, and show the answer. Loads nothing heavy."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import TYPE_CHECKING, Final

from tunnel.errors import Exit, StateError, TunnelError, UsageError
from tunnel.ops.control.ask import AnswerError
from tunnel.ops.control.live import EVERY_S, Top, look_again
from tunnel.ops.control.processes import (
    NOT_HERE,
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
from tunnel.ops.hide import VARIABLE as HIDDEN_ARGUMENTS
from tunnel.ops.standard import lost_output
from tunnel.ops.texts import connections, explained, shown, size_text
from tunnel.redaction import masked
from tunnel.words import escaped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

FOLLOW_S: Final = 0.5
"""How often to ask for new lines of a log."""
GONE_S: Final = 0.05
"""How often to look whether a process has ended: it takes some ten of these."""
VARIABLES: Final = ("TUNNEL_JSON", HIDDEN_ARGUMENTS)
"""Variables that mean something to these commands, or to their words."""
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
        raise NotRunningError(NOT_HERE)
    return _written()


def status(
    name: str | None = None,
    *,
    as_json: bool = False,
    quiet: bool = False,
    watch: bool = False,
) -> Exit:
    """Show what processes do; with ``watch`` again each second, until Ctrl+C.

    With ``quiet`` only the exit status says it: 0 if all are well, ``NOT_REACHED`` if a
    client has no link.
    """
    if watch:
        return look_again(lambda: _frame(name, as_json=as_json))
    worst = Exit.OK
    refused: list[TunnelError] = []
    for at, (_process, answer) in enumerate(_answers(name, "status")):
        if isinstance(answer, TunnelError):
            refused.append(answer)
            continue
        if text(answer, "state") in _NO_LINK:
            worst = Exit.NOT_REACHED
        if not quiet:
            _print_all(_shown_status(answer, at, as_json=as_json))
    for error in refused[:-1]:
        _warn(error)
    if refused:
        raise refused[-1]
    return worst if quiet else _written()


def _answers(
    name: str | None, do: str, **args: object
) -> Iterator[tuple[Process, Fields | TunnelError]]:
    """Ask each process that is meant; what one says, or why it says nothing.

    One that has ended since it was listed is passed over.

    Raises:
        NotRunningError: none is left.
    """
    ended = 0
    known = find_all(name)
    for process in known:
        answer: Fields | TunnelError
        try:
            answer = process.ask(do, **args)
        except NotRunningError:
            ended += 1
            continue
        except TunnelError as error:
            answer = error
        yield process, answer
    if ended == len(known):
        raise NotRunningError(NOT_HERE)


def _frame(name: str | None, *, as_json: bool) -> Iterator[str]:
    for at, (_process, answer) in enumerate(_answers(name, "status")):
        if isinstance(answer, TunnelError):
            yield shown(f"warning: {answer.what}")
        else:
            yield from _shown_status(answer, at, as_json=as_json)


def _shown_status(answer: Fields, at: int, *, as_json: bool) -> Iterator[str]:
    if as_json:
        yield json.dumps(answer)
    else:
        yield from [""] if at else []
        yield from status_lines(answer)


def top(name: str | None = None) -> Exit:
    """Show the connections of a process, each second; once, where nobody looks."""
    process = find(name)
    table = Top(lambda: process.ask("top"))
    table.look()
    if sys.stdout.isatty():
        return look_again(table.look, first_s=EVERY_S)
    time.sleep(EVERY_S)
    _print_all(table.look())
    return _written()


def kick(which: str, name: str | None = None) -> Exit:
    """End a client's session, a link or a connection."""
    refused: TunnelError | None = None
    for process, answer in _answers(name, "kick", which=which):
        if isinstance(answer, TunnelError):
            refused = answer
            continue
        count = int(number(answer, "connections"))
        _print(f"{process.name}: {shown(which)} ended, {connections(count)} reset")
        return _written()
    raise refused or NotRunningError(NOT_HERE)


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


def reload(name: str | None = None, *, now: bool = False) -> Exit:
    """Have a process read its file again; shows what has changed, or all faults."""
    return _changed(find(name).ask("reload", now=now))


def add(flag: str, entry: str, name: str | None = None, *, save: bool = False) -> Exit:
    """Add an entry to a running client; ``flag`` is that of ``tunnel up``.

    ``save`` adds it to the client's file too.
    """
    return _changed(find(name, "up").ask("add", flag=flag, text=entry, save=save))


def remove(
    entry: str, name: str | None = None, *, now: bool = False, save: bool = False
) -> Exit:
    """Take an entry away from a running client; ``now`` cuts who is in.

    ``save`` takes it out of the client's file too.
    """
    return _changed(find(name, "up").ask("remove", entry=entry, now=now, save=save))


def pause(entry: str, name: str | None = None) -> Exit:
    """Refuse new visitors of an entry of a client."""
    return _paused("pause", entry, name)


def resume(entry: str, name: str | None = None) -> Exit:
    """Serve the visitors of a paused entry of a client again."""
    return _paused("resume", entry, name)


def _paused(do: str, entry: str, name: str | None) -> Exit:
    answer = find(name, "up").ask(do, entry=entry)
    state = "paused" if answer.get("paused") else "open"
    _print(shown(f"{text(answer, 'entry')}: {state}"))
    return _written()


def lead(entry: str, target: str, name: str | None = None) -> Exit:
    """Lead an entry of a client to another target."""
    return _changed(find(name, "up").ask("lead", entry=entry, target=target))


def _changed(answer: Fields) -> Exit:
    """Show what has changed, or all faults of the file that kept it from that."""
    faults = answer.get("faults")
    for line in faults if isinstance(faults, list) else []:
        sys.stderr.write(f"{shown(str(line))}\n")
    changes = answer.get("changes")
    for line in changes if isinstance(changes, list) else []:
        _print(shown(str(line)))
    if file := text(answer, "file"):
        _print(shown(f"saved in {file}"))
    done = _written()
    return Exit.CONFIGURATION if faults else done


def limit(entry: str, rate: str, name: str | None = None) -> Exit:
    """Let an entry of a client have so many bytes a second; ``none`` lifts that."""
    answer = find(name, "up").ask("limit", entry=entry, rate=rate)
    per_s = answer.get("limit_per_s")
    most = f"{size_text(number(answer, 'limit_per_s'))}/s" if per_s else "no limit"
    _print(shown(f"{text(answer, 'entry')}: {most}"))
    return _written()


def logs(name: str | None = None, *, follow: bool = False) -> Exit:
    """Show the last lines of a process's log; with ``follow`` those to come too."""
    process = find(name)
    last = _log_lines(process, 0)
    while follow and lost_output() is None:
        sys.stdout.flush()
        time.sleep(FOLLOW_S)
        last = _log_lines(process, last)
    return Exit.OK if follow else _written()


def _log_lines(process: Process, after: int) -> int:
    """Show the lines behind one; return the number of the last."""
    for line in listed(process.ask("logs", after=after), "lines"):
        missed = int(number(line, "number")) - after - 1
        if after and missed > 0:
            _print(f"({missed} lines are gone)")
        _print(shown(text(line, "text")))
        after = int(number(line, "number"))
    return after


def dashboard(name: str | None = None, *, open_it: bool = False) -> Exit:
    """Show the URL of a page, with its token; one must be meant."""
    known = [find(name)] if name is not None else find_all(None)
    urls: list[str] = []
    for process in known:
        try:
            urls.append(text(process.ask("dashboard"), "url"))
        except AnswerError:  # it has none, or is an older program
            continue
    if not urls:
        why = "a page is opened only where that is asked for"
        fix = "tunnel serve --dashboard 4040, or up, or share"
        raise UsageError("no process of this user here has a page", why, fix)
    for url in urls:
        _print(escaped(url))
    if open_it:
        import webbrowser

        webbrowser.open(urls[0])
    return _written()


def why(connection: str | None = None, *, as_json: bool = False) -> Exit:
    """Show what one connection waits for, as each end here tells, or list all."""
    told: list[tuple[str, Fields]] = []
    refused: TunnelError | None = None
    key = "listed" if connection is None else "found"
    for process, answer in _answers(None, "why", connection=connection or ""):
        if isinstance(answer, TunnelError):
            refused = answer
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
    "status": {"--json", "--quiet", "--watch"},
    "top": set(),
    "kick": set(),
    "limit": set(),
    "add": {"--save"},
    "remove": {"--now", "--save"},
    "pause": set(),
    "resume": set(),
    "lead": set(),
    "stop": set(),
    "drain": set(),
    "retry": set(),
    "reload": {"--now"},
    "logs": {"--follow"},
    "why": {"--json"},
}
"""The commands that are done here, and their flags."""


_NAMES: Final = {
    "ps": (0, 0),
    "kick": (1, 2),
    "limit": (2, 3),
    "add": (2, 3),
    "remove": (1, 2),
    "pause": (1, 2),
    "resume": (1, 2),
    "lead": (2, 3),
}
"""How many words they take, where that is not one or none."""


def quick(words: list[str]) -> int | None:
    """Do a command whose words are plain, and return its exit status.

    None: these words are for the whole parser, which takes a quarter of a second to
    load: another command, a variable, a request for help, a fault, a secret that is to
    be kept out of ``ps`` first, or was.
    """
    command = words[0] if words else ""
    if command not in _FLAGS or any(name in os.environ for name in VARIABLES):
        return None
    if masked(words) != words:
        return None
    names = [word for word in words[1:] if not word.startswith("-")]
    flags = {word for word in words[1:] if word.startswith("-")}
    least, most = _NAMES.get(command, (0, 1))
    fits = least <= len(names) <= most and all(names)
    if not (fits and flags <= _FLAGS[command]):
        return None
    try:
        return _do(command, names, flags)
    except TunnelError as error:
        sys.stderr.write(explained(f"error: {error.what}", error))
        return error.exit_status
    except KeyboardInterrupt:
        return Exit.INTERRUPTED


def _do(command: str, names: list[str], flags: set[str]) -> Exit:
    name = names[0] if names else None
    as_json = "--json" in flags
    match command:
        case "ps":
            return ps(as_json=as_json)
        case "status":
            quiet, watch = "--quiet" in flags, "--watch" in flags
            return status(name, as_json=as_json, quiet=quiet, watch=watch)
        case "why":
            return why(name, as_json=as_json)
        case "add":
            return add(*names, save="--save" in flags)
        case "remove":
            now, save = "--now" in flags, "--save" in flags
            return remove(*names, now=now, save=save)
        case "reload":
            return reload(name, now="--now" in flags)
        case "logs":
            return logs(name, follow="--follow" in flags)
        case _:
            return _WITHOUT_FLAGS[command](names)


_WITHOUT_FLAGS: Final[Mapping[str, Callable[[list[str]], Exit]]] = {
    "top": lambda words: top(*words),
    "kick": lambda words: kick(*words),
    "limit": lambda words: limit(*words),
    "pause": lambda words: pause(*words),
    "resume": lambda words: resume(*words),
    "lead": lambda words: lead(*words),
    "stop": lambda words: stop(*words),
    "drain": lambda words: drain(*words),
    "retry": lambda words: retry(*words),
}
"""Those that take words alone."""
