"""The users that were invited, as STATE/users.toml keeps them.

The file holds verifiers and no token: whoever steals it logs in nowhere.

    [users.alice]
    verifier = "prot1:…"
    may = ["ports:16", "names:alice"]
    limits = ["rate=5MB/s"]
    expires = 2026-12-31T00:00:00Z
"""

from __future__ import annotations

import json
import re
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from tunnel.access.files import exists, locked, read_private, write_private
from tunnel.access.limits import Limits, parse_limits
from tunnel.access.rules import Rights, parse_rights
from tunnel.access.users import MAX_USERS, Once, User, check_name
from tunnel.errors import StateError, TunnelError, UsageError
from tunnel.proto.proofs import parse_verifier
from tunnel.words import meant, read_toml

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from tunnel.proto.proofs import Verifier

MAX_FILE_BYTES: Final = 16_777_216
"""Ten thousand users with some dozens of rights each, or a hundred with thousands."""
_KEYS: Final = ("verifier", "may", "limits", "expires", "once", "own", "was")
_HEAD: Final = "# Made by tunnel: users that were invited. No token is in here.\n"
_TABLE: Final = re.compile(r"\s*\[\s*users\s*\.\s*[\"']?([^\s\"'\]]+)[\"']?\s*\]")
_AT_LINE: Final = re.compile(r"at line (\d+)")
_CLIENT_ID: Final = re.compile(r"[0-9a-f]{32}")

Stamp = tuple[int, int, int] | None
"""By what a file is known to be the same as before; None: it is not there."""


def users_path(state_dir: Path) -> Path:
    """Return the file of a server's users."""
    return state_dir / "users.toml"


def stamp_of(path: Path) -> Stamp:
    """Return by what a change of the file is noticed, without reading it."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def load_users(state_dir: Path) -> dict[str, User]:
    """Return the users that were invited, by name; none where there is no file.

    Raises:
        StateError: the file is not ours, open to others, too large or wrong; with the
            line where that can be told.
    """
    path = users_path(state_dir)
    if not exists(path):
        return {}
    if (stamp := stamp_of(path)) is not None and stamp[1] > MAX_FILE_BYTES:
        raise StateError(f"{path} has more than {MAX_FILE_BYTES} bytes")
    return read_users(read_private(path), str(path))


@contextmanager
def changed_users(state_dir: Path) -> Iterator[dict[str, User]]:
    """Hold the users in a dict, and write what the block has made of it.

    Other processes wait meanwhile. A block that raises changes nothing.

    Raises:
        StateError: the file cannot be read, locked or written.
    """
    with locked(state_dir / "users.lock"):
        users = load_users(state_dir)
        before = dict(users)
        yield users
        if users != before:
            write_private(users_path(state_dir), write_users(users))


# Reading -----------------------------------------------------------------------------


def read_users(text: str, named: str) -> dict[str, User]:
    """Read the text of a file.

    Raises:
        StateError: with ``named`` and the line.
    """
    try:
        document = read_toml(text)
    except ValueError as error:
        at = _AT_LINE.search(str(error))
        line = at[1] if at else text.count("\n") + 1
        raise StateError(f"{named}:{line}: {error}") from None
    places = _places(text)
    tables = document.pop("users", {})
    for key in document:
        raise _unknown(f"{named}:{_line_of_key(text, key)}", key, ("users",))
    if not isinstance(tables, dict):
        raise StateError(f"{named}:1: users is no table of users")
    if len(tables) > MAX_USERS:
        raise StateError(f"{named}: more than {MAX_USERS} users")
    users = {}
    for name, table in tables.items():
        where = _Where(named, name, places.get(name, {}))
        if not isinstance(table, dict):
            raise StateError(f"{where.at()}: the user {name} is no table")
        users[name] = _Table(table, where).user()
    return users


class _Where:
    """Where a user stands in the file."""

    def __init__(self, named: str, name: str, lines: Mapping[str, int]) -> None:
        self.name = name
        self._named = named
        self._lines = lines

    def at(self, key: str = "") -> str:
        """Return file and line of a key, or of the user."""
        line = self._lines.get(key) or self._lines.get("") or 1
        return f"{self._named}:{line}"


class _Table:
    """The table of one user."""

    def __init__(self, table: dict[str, object], where: _Where) -> None:
        self._table = table
        self._where = where

    def user(self) -> User:
        """Return the user, or raise StateError with the line."""
        key = ""
        try:
            for key in self._table:
                if key not in _KEYS:
                    raise _unknown(self._where.at(key), key, _KEYS)
            key = ""
            check_name(self._where.name)
            key = "verifier"
            verifier = parse_verifier(self._text(key))
            key = "own"
            own = parse_verifier(self._text(key)) if key in self._table else None
            key = "may"
            rights = self._rights()
            key = "limits"
            limits = self._limits()
            key = "expires"
            expires_at = self._expires()
            key = "once"
            once = self._once(own)
            key = "was"
            was = self._text(key) if key in self._table else ""
            if was:
                check_name(was)
            name = self._where.name
            return User(name, verifier, rights, limits, expires_at, once, was)
        except TunnelError as error:
            place = self._where.at(key)
            what = error.what.removeprefix(f"{place}: ")
            raise StateError(f"{place}: {what}", error.cause, error.fix) from None

    def _rights(self) -> Rights:
        return parse_rights(self._texts("may"), self._where.at("may"))

    def _limits(self) -> Limits:
        return parse_limits(self._texts("limits"), self._where.at("limits"))

    def _expires(self) -> float | None:
        found = self._table.get("expires")
        if found is None:
            return None
        if not isinstance(found, datetime):
            raise StateError("expires is no time", fix="2026-12-31T00:00:00Z")
        return utc_time(found)

    def _once(self, own: Verifier | None) -> Once | None:
        found = self._table.get("once", False)
        if found is False:
            return None
        if found is True:
            return Once()
        if not isinstance(found, str) or not _CLIENT_ID.fullmatch(found) or not own:
            raise StateError("once is true, or a client id beside own")
        return Once(bytes.fromhex(found), own)

    def _text(self, key: str) -> str:
        found = self._table.get(key)
        if not isinstance(found, str):
            raise StateError(f"{key} is not a text" if found else f"there is no {key}")
        return found

    def _texts(self, key: str) -> list[str]:
        found = self._table.get(key, [])
        if not isinstance(found, list):
            raise StateError(f"{key} is not a list of texts")
        texts = [one for one in found if isinstance(one, str)]
        if len(texts) != len(found):
            raise StateError(f"{key} is not a list of texts")
        return texts


def _unknown(place: str, key: str, known: tuple[str, ...]) -> StateError:
    what, why = f"{place}: {key!r} is no key", f"known: {', '.join(known)}"
    return StateError(what, why, meant(key, known))


def _places(text: str) -> dict[str, dict[str, int]]:
    """Return the line of each user, as key "", and of each of the user's keys."""
    places: dict[str, dict[str, int]] = {}
    lines: dict[str, int] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if (found := _TABLE.match(line)) is not None:
            lines = places.setdefault(found[1], {"": number})
        elif "=" in line:
            lines.setdefault(line.partition("=")[0].strip(" \t\"'"), number)
    return places


def _line_of_key(text: str, key: str) -> int:
    for number, line in enumerate(text.split("\n"), 1):
        if re.match(rf"[\s\[\"']*{re.escape(key)}(?!\w)", line):
            return number
    return 1


# Writing -----------------------------------------------------------------------------


def write_users(users: Mapping[str, User]) -> str:
    """Return the text of the file, as ``read_users`` reads it."""
    return _HEAD + "".join(_written(users[name]) for name in sorted(users))


def _written(user: User) -> str:
    lines = [
        f"[users.{user.name}]",
        f"verifier = {_quoted(user.verifier.render())}",
        f"may = {_list(user.rights.words)}",
    ]
    if user.limits.words:
        lines.append(f"limits = {_list(user.limits.words)}")
    if user.expires_at is not None:
        lines.append(f"expires = {time_text(user.expires_at)}")
    if (once := user.once) is not None:
        bound = once.own is not None
        lines.append(f"once = {_quoted(once.client_id.hex()) if bound else 'true'}")
        if once.own is not None:
            lines.append(f"own = {_quoted(once.own.render())}")
    if user.was:
        lines.append(f"was = {_quoted(user.was)}")
    return "\n" + "\n".join(lines) + "\n"


def utc_time(when: datetime) -> float:
    """Return a time, in UTC unless it says another zone, in seconds of Unix time.

    Raises:
        UsageError: in UTC it is before the year 1, or after 9999: ``time_text`` could
            not write it.
    """
    try:
        there = when if when.tzinfo else when.replace(tzinfo=UTC)
        return there.astimezone(UTC).timestamp()
    except OverflowError:
        raise UsageError(f"{when} is in no year from 1 to 9999") from None


def time_text(at: float) -> str:
    """Write a time, in seconds of Unix time, as RFC 3339 has it, to the second."""
    when = datetime.fromtimestamp(int(at), UTC).replace(tzinfo=None)
    return f"{when.isoformat()}Z"  # strftime writes no zeros before a year


def _list(words: tuple[str, ...]) -> str:
    if len(words) < 4:
        return f"[{', '.join(map(_quoted, words))}]"
    return "[\n" + "".join(f"    {_quoted(word)},\n" for word in words) + "]"


def _quoted(text: str) -> str:
    # JSON's escapes are TOML's, but for surrogates, which are not written as such.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
