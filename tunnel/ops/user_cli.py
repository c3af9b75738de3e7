"""``tunnel invite`` and ``tunnel users``: the people of a server.

They ask the server that runs over its control socket; where none runs they change its
files.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path  # noqa: TC003 - cyclopts reads the annotations
from typing import TYPE_CHECKING, Annotated, Final

from cyclopts import App, Parameter

from tunnel.errors import Exit, StateError, UsageError
from tunnel.ops.flags import Words, life

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunnel.access.join import JoinLine
    from tunnel.ops.show import Show

Fields = dict[str, object]


@Parameter(name="*")
@dataclass(frozen=True)
class StateFlags:
    """Whose users, and how they are shown.

    Args:
        state: The server's folder, if it is not the usual one.
        as_json: Each line of stdout is a JSON object.
    """

    state: Path | None = None
    as_json: Annotated[bool, Parameter(name="--json")] = False


@Parameter(name="*")
@dataclass(frozen=True)
class LimitFlags:
    """How much a user may have.

    Args:
        rate: Bytes per second each way, as 5MB/s.
        limit: WORD=VALUE, as sessions=10, connections=100 or month=100GB. Repeatable.
    """

    rate: str | None = None
    limit: Words = None

    def words(self) -> list[str]:
        """Return the limits that are said.

        Raises:
            UsageError: the rate is none. What ``--limit`` says the server reads.
        """
        words = list(self.limit or [])
        if self.rate is not None:
            from tunnel.access.limits import parse_limits

            rate = f"rate={self.rate}"
            parse_limits([rate], "--rate")
            words.insert(0, rate)
        return words


STATE: Final = StateFlags()
LIMITS: Final = LimitFlags()

users = App(name="users", help="Show and change who may use this server.")


def invite(
    name: str,
    /,
    *,
    may: Words = None,
    limits: LimitFlags = LIMITS,
    expires: str | None = None,
    once: bool = False,
    address: str | None = None,
    qr: bool = False,
    state: StateFlags = STATE,
) -> int:
    """Let another person, or another program, use this server: print a join line.

    Args:
        name: Of the user: a-z, 0-9 and -.
        may: A right, as tcp:2200-2299, http:shop, reach:10.0.0.0/8:5432, exit:home,
            unix:/run/app.sock, socks, test, all. Repeatable; without it 16 ports of the
            server's range, and the host names NAME and NAME-….
        expires: How long the user may be here, as 30d.
        once: The line works for one machine, which then has a token of its own.
        address: HOST or HOST:PORT that the line names, if not the server's own.
        qr: Show the line as a QR code too, on stderr.
    """
    expires_s = None if expires is None else life("--expires", expires)
    return _do(
        "invite",
        state,
        show_qr=_qr_maker() if qr else None,
        name=name,
        may=may or [],
        limits=limits.words(),
        expires_s=expires_s,
        once=once,
        address=address,
    )


@users.command
def ls(*, state: StateFlags = STATE) -> int:
    """List the users that were invited."""
    return _do("ls", state)


@users.command
def show(name: str, /, *, state: StateFlags = STATE) -> int:
    """Show what a user may, and whether it is here.

    Args:
        name: Of the user.
    """
    return _do("show", state, name=name)


@users.command
def revoke(name: str, /, *, state: StateFlags = STATE) -> int:
    """Throw a user out: its links, connections and public ports end at once.

    Args:
        name: Of the user.
    """
    return _do("revoke", state, name=name)


@users.command
def rotate(
    name: str,
    /,
    *,
    once: bool = False,
    address: str | None = None,
    state: StateFlags = STATE,
) -> int:
    """Give a user another token: print its join line, end what the old one opened.

    Args:
        name: Of the user.
        once: The line works for one machine, which then has a token of its own. Say it
            again for a user that was invited so and whose machine has one.
        address: HOST or HOST:PORT that the line names, if not the server's own.
    """
    return _do("rotate", state, name=name, once=once, address=address)


@users.command
def limit(
    name: str, /, *, limits: LimitFlags = LIMITS, state: StateFlags = STATE
) -> int:
    """Change how much a user may have; holds for what runs already.

    Args:
        name: Of the user.
    """
    return _do("limit", state, name=name, limits=limits.words())


@users.command
def may(name: str, /, *rights: str, state: StateFlags = STATE) -> int:
    """Change what a user may: these rights, and no others; holds at once.

    Args:
        name: Of the user.
        rights: As for `tunnel invite --may`; none: no right at all.
    """
    if not rights:
        fix = f"tunnel users show {name}, or tunnel users may {name} none"
        raise UsageError("no right is given", fix=fix)
    may = [] if rights == ("none",) else list(rights)
    return _do("may", state, name=name, may=may)


@users.command
def expires(name: str, after: str, /, *, state: StateFlags = STATE) -> int:
    """Change how long a user may be here.

    Args:
        name: Of the user.
        after: From now on, as 30d; never: for ever.
    """
    expires_s = None if after == "never" else life("expires", after)
    return _do("expires", state, name=name, expires_s=expires_s)


@users.command
def rename(
    name: str,
    to: str,
    /,
    *,
    address: str | None = None,
    state: StateFlags = STATE,
) -> int:
    """Give a user another name, and so another token: print its join line.

    Args:
        name: Of the user now. Its rights and limits stay.
        to: Its name from now on.
        address: HOST or HOST:PORT that the line names, if not the server's own.
    """
    return _do("rename", state, name=name, to=to, address=address)


# Doing it ----------------------------------------------------------------------------


def _do(
    command: str,
    flags: StateFlags,
    *,
    show_qr: Callable[[str], None] | None = None,
    **args: object,
) -> int:
    """Have the server do a command, or do it here; show the answer."""
    from tunnel.ops.control.ask import ask
    from tunnel.ops.saved import state_folder
    from tunnel.ops.show import Show
    from tunnel.ops.standard import lost_output

    shown = Show(as_json=flags.as_json)
    state = (flags.state or state_folder()).absolute()
    _insist_own(state)
    answer = ask(state, f"users.{command}", args)
    if answer is None:
        answer = _perform(state, command, args)
    missed = answer.pop("missed", None) if not flags.as_json else answer.get("missed")
    _show(shown, command, answer)
    if isinstance(missed, list):
        shown.error(_missed(missed), "warning")
    if "join" in answer and (lost := lost_output()) is not None:
        what = "the join line was not written, and nobody keeps it"
        fix = f"tunnel users rotate {answer['user']}"
        raise StateError(what, lost.strerror or str(lost), fix)
    if show_qr is not None:
        show_qr(str(answer["join"]))
    return Exit.CHECK_FAILED if missed else Exit.OK


def _missed(nodes: list[object]) -> StateError:
    names = ", ".join(map(str, nodes))
    return StateError(
        f"{names} has not heard of it",
        "it holds at the other nodes; this one hears of it when it is reached again",
        f"look whether {names} runs, and reaches Redis",
    )


def _qr_maker() -> Callable[[str], None]:
    """Return what writes a text as a QR code on stderr.

    Raises:
        UsageError: the package for that is not installed; nobody was invited.
    """
    import importlib
    import sys

    try:
        segno = importlib.import_module("segno")
    except ImportError as error:
        fix = "pip install 'tunnel[qr]'"
        raise UsageError("--qr needs the package segno", fix=fix) from error

    def show(text: str) -> None:
        code = segno.make(text, micro=False, error="l")
        code.terminal(out=sys.stderr, compact=True)

    return show


def _insist_own(state: Path) -> None:
    """Refuse a folder of another user, whose server could not read what we write.

    Raises:
        StateError: it is another user's, or there is none.
    """
    from tunnel.platform.process import user_id

    try:
        owner = state.stat().st_uid
    except OSError as error:
        why = "`tunnel serve` makes it when it starts for the first time"
        raise StateError(f"there is no folder {state}", why, "--state DIR") from error
    if user_id() not in (None, owner):
        why = f"it belongs to user {owner}"
        raise StateError(f"will not use {state}", why, f"sudo -u '#{owner}' tunnel …")


def _perform(state: Path, command: str, args: Fields) -> Fields:
    from tunnel.access.join import kept_join
    from tunnel.access.months import Months
    from tunnel.access.user_commands import UserCommands
    from tunnel.ops.config.source import users_of_file

    def line() -> JoinLine:
        kept = kept_join(state)
        if kept is None:
            why = "`tunnel serve` writes its address there when it starts"
            raise StateError(f"there is no join line in {state}", why, "tunnel serve")
        return kept

    commands = UserCommands(state, line, of_file=users_of_file())
    answer = commands.perform(command, args, "this user")
    if command == "rename":
        months = Months(state)
        months.rename(str(args["name"]), str(args["to"]))
        if (text := months.due()) is not None:
            months.write(text)
    return answer


def _show(shown: Show, command: str, answer: Fields) -> None:
    if isinstance(join := answer.get("join"), str):
        for label, value in _told(answer):
            shown.talk(label, value)
        if shown.as_json:
            _json(answer)
        else:
            shown.secret_line("join", join)
    elif command == "ls":
        listed = answer.get("users")
        for one in listed if isinstance(listed, list) else []:
            _line(shown, one)
    elif command == "show" and not shown.as_json:
        for label, value in _told(answer):
            shown.line("user", f"{label:<12}{value}")
    else:
        _line(shown, answer)


def _line(shown: Show, user: Fields) -> None:
    if shown.as_json:
        _json(user)
        return
    told = dict(_told(user))
    name = told.pop("user")
    shown.line("user", f"{name:<20}" + "  ".join(f"{k} {v}" for k, v in told.items()))


def _json(fields: Fields) -> None:
    import json

    print(json.dumps(fields), flush=True)


def _told(user: Fields) -> list[tuple[str, str]]:
    """Return what is to be said of a user, and in which words."""
    told = [("user", str(user["user"]))]
    for key in ("links", "may", "limits", "expires", "once", "file"):
        value = user.get(key)
        if isinstance(value, list):
            value = " ".join(map(str, value)) or ("nothing" if key == "may" else None)
        if value is not None:
            told.append((key, str(value)))
    return told
