"""Reads a configuration file: all that is wrong with it at once, each with its line."""

from __future__ import annotations

import re
from contextvars import ContextVar
from dataclasses import dataclass, field, fields
from functools import partial
from typing import TYPE_CHECKING, Final, Literal, TypeVar

from cattrs import ClassValidationError, Converter, ForbiddenExtraKeysError
from cattrs.errors import AttributeValidationNote, BaseValidationError
from cattrs.gen import make_dict_structure_fn, override

from tunnel.access.files import insist_unwritable
from tunnel.access.users import MAX_USERS
from tunnel.errors import ConfigError, TunnelError, UsageError
from tunnel.ops.config.content import content
from tunnel.ops.config.lines import line_at, lines_of
from tunnel.ops.config.place import Place
from tunnel.ops.config.schema import (
    ENTRIES,
    READ,
    ClientTable,
    ServerTable,
    UserTable,
)
from tunnel.ops.config.tables import entry_of, line_of, user_of
from tunnel.ops.config.values import Several, kind_of
from tunnel.ops.entries import refuse_twice
from tunnel.words import meant, read_toml

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from tunnel.access.users import User
    from tunnel.ops.config.schema import Said, Table
    from tunnel.ops.config.values import Read, Words
    from tunnel.ops.entries import Entry

T = TypeVar("T")
Made = tuple["Table", "Entry"]
Known = dict[str, Made]
Section = Literal["server", "client"]
Keys = tuple[str | int, ...]
SECTIONS: Final[tuple[Section, ...]] = ("server", "client")
MAX_FAULTS: Final = 1_000
"""A file with more is another file; each may cost a search for what was meant."""
_AT_LINE: Final = re.compile(r" \(at line (\d+), column \d+\)| \(at end of document\)")
_DASHED: Final = re.compile(
    r"(?:--|\b(?=(?:auth|response)-header\b|max-body\b))([a-z-]+)"
)
"""Flags, and words of entries, as others write them."""
_FLAG_IN_FIX: Final = re.compile(r"--([a-z][a-z-]*)[ =]([^\s,]+)")
_NOT_ALL: Final = {"auth", "auth_file", "ca", "header", "response_header"}
"""Keys that name a file, or may hold a secret."""


@dataclass(frozen=True, slots=True)
class Value:
    """What a key says, in the words of its flag."""

    words: tuple[str, ...]
    line: int


@dataclass(frozen=True, slots=True)
class Written:
    """An entry of the file."""

    flag: str
    """Of ``tunnel up``, without dashes and with ``_``."""
    table: Table
    entry: Entry
    line: int


@dataclass(frozen=True, slots=True)
class ServerSection:
    """``[server]``."""

    line: int
    flags: Mapping[str, Value] = field(default_factory=dict)
    """By the names of the fields of ``ServeFlags`` and ``RunFlags``."""
    users: Mapping[str, User] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ClientSection:
    """``[client]``."""

    line: int
    flags: Mapping[str, Value] = field(default_factory=dict)
    """By the names of the fields of ``ServerFlags`` and ``RunFlags``."""
    entries: tuple[Written, ...] = ()


@dataclass(frozen=True, slots=True)
class Config:
    """What a configuration file says."""

    path: Path
    server: ServerSection | None = None
    client: ClientSection | None = None


def read_config(
    path: Path, sections: Iterable[Section] = SECTIONS, known: Known | None = None
) -> Config:
    """Read a configuration file.

    Args:
        path: of the file.
        sections: those that are read; of the others not even the secrets' files are.
        known: entries of an earlier reading, which are taken where their tables are the
            same; it has those of this reading afterwards.

    Raises:
        ConfigError: it cannot be read, or something is wrong; with all faults.
    """
    try:
        text, status = content(path)
        insist_unwritable(path, status)
    except TunnelError as error:
        raise ConfigError([f"{path}: {_said(error)}"]) from None
    return parse_config(text, Place(path, status), sections, known)


def as_fault(config: Config, error: UsageError) -> ConfigError:
    """Return what is wrong with values of a file that were read each for itself."""
    section = config.server or config.client
    line = section.line if section else 1
    return ConfigError([f"{config.path}:{line}: {_said(error)}"])


def parse_config(
    text: str,
    place: Place,
    sections: Iterable[Section] = SECTIONS,
    known: Known | None = None,
) -> Config:
    """Read the text of a configuration file; as ``read_config``."""
    try:
        document = read_toml(text)
    except ValueError as error:
        raise ConfigError([syntax_fault(place.path, text, error)]) from None
    lines = lines_of(text.replace("\r\n", "\n"))
    reading = _Reading(place, lines, {} if known is None else known)
    config = reading.config(document, sections)
    if reading.faults:
        raise ConfigError(reading.told())
    if known is not None:
        known.clear()
        known |= reading.found
    return config


def syntax_fault(path: Path, text: str, error: ValueError) -> str:
    """Return why a text is no TOML, with its place."""
    found = _AT_LINE.search(str(error))
    line = int((found and found[1]) or text.count("\n") + 1)
    return f"{path}:{line}: {_AT_LINE.sub('', str(error))}"


_CONVERTER: Final = Converter(forbid_extra_keys=True)
"""One for all readings: each is a hundred kilobytes in cycles."""
_REGISTERED: Final[set[type]] = set()
_PLACE: Final[ContextVar[Place]] = ContextVar("_PLACE")
"""That of the document that is read at the moment."""


class _Reading:
    """One reading of a document, which collects what is wrong with it."""

    def __init__(
        self, place: Place, lines: Mapping[Keys, int], before: Mapping[str, Made]
    ) -> None:
        self.faults: list[tuple[int, str]] = []
        self.found: Known = {}
        self._before = before
        self._place = place
        self._lines = lines

    def told(self) -> list[str]:
        """Return the faults, in the order of the file."""
        path = self._place.path
        told = [f"{path}:{line}: {what}" for line, what in sorted(self.faults)]
        more = len(told) - MAX_FAULTS
        return [*told[:MAX_FAULTS], *([f"{path}: {more} more"] if more > 0 else [])]

    def config(
        self, document: dict[str, object], sections: Iterable[Section]
    ) -> Config:
        for key in document.keys() - set(SECTIONS):
            known = {*SECTIONS}
            self._fault((key,), _unknown(key, known))
        wanted = {str(key): document[key] for key in sections if key in document}
        server = client = None
        if (found := self._table(wanted, "server")) is not None:
            server = self._server(found)
        if (found := self._table(wanted, "client")) is not None:
            client = self._client(found)
        return Config(self._place.path, server, client)

    def _table(self, document: dict[str, object], key: str) -> dict[str, object] | None:
        found = document.get(key)
        if found is None or isinstance(found, dict):
            return found
        what = f"it is a table, not {kind_of(found)}"
        self._fault((key,), UsageError(f"{key}: {what}", fix=f"[{key}]"))
        return None

    # Sections ------------------------------------------------------------------------

    def _server(self, table: dict[str, object]) -> ServerSection:
        found = table.pop("users", {})
        users: dict[str, User] = {}
        if not isinstance(found, dict):
            error = UsageError("users are tables", fix="[server.users.NAME]")
            self._fault(("server", "users"), error)
        elif len(found) > MAX_USERS:
            error = UsageError(f"there are more than {MAX_USERS} users")
            self._fault(("server", "users"), error)
        else:
            for name, one in found.items():
                if (user := self._user(name, one)) is not None:
                    users[name] = user
        read = self._structured(("server",), table, ServerTable, {"users"})
        flags = {} if read is None else self._flags(("server",), read)
        self._merge(("server",), flags, "dashboard_auth")
        return ServerSection(self._line(("server",)), flags, users)

    def _user(self, name: str, table: object) -> User | None:
        path = "server", "users", name
        read = self._structured(path, table, UserTable)
        where = f"{self._place.path.absolute()}:{self._line(path)}"
        return (
            None
            if read is None
            else self._try(path, lambda: user_of(name, read, where))
        )

    def _client(self, table: dict[str, object]) -> ClientSection:
        entries: list[Written] = []
        for flag in ENTRIES:
            entries += self._entries(flag, table.pop(flag, []))
        self._refuse_twice(entries)
        path = ("client",)
        read = self._structured(path, table, ClientTable, set(ENTRIES))
        if read is None:
            return ClientSection(self._line(path), {}, tuple(entries))
        flags = self._flags(path, read)
        said = [flags.pop(one, None) for one in ("to", "to_file", "token_file")]
        line = self._try((*path, "to"), partial(line_of, read))
        if line is not None:
            at = next(one.line for one in said if one)
            flags["to"] = Value(tuple(line), at)
        self._merge(path, flags, "via")
        self._merge(path, flags, "dashboard_auth")
        return ClientSection(self._line(path), flags, tuple(entries))

    def _merge(self, path: Keys, flags: dict[str, Value], key: str) -> None:
        """Have the key of a file with a value stand for the key of the value."""
        of_file = flags.pop(f"{key}_file", None)
        if of_file is None:
            return
        if key in flags:
            why = UsageError(f"{key} and {key}_file say the same")
            self._fault((*path, f"{key}_file"), why)
        flags[key] = of_file

    def _entries(self, flag: str, tables: object) -> Iterator[Written]:
        path: Keys = ("client", flag)
        if not isinstance(tables, list):
            fix = f"[[client.{flag}]], with two brackets each"
            self._fault(path, UsageError(f"{flag} is a list of tables", fix=fix))
            return
        for index, table in enumerate(tables):
            at = (*path, index)
            by = f"{flag} {table!r}"
            made = self._before.get(by) or self._made(flag, at, table)
            if made is not None:
                if _is_all(flag, table):
                    self.found[by] = made
                yield Written(flag, *made, self._line(at))

    def _made(self, flag: str, at: Keys, table: object) -> Made | None:
        """Return an entry with its table; None where it has faults."""
        read = self._structured(at, table, ENTRIES[flag])
        if read is None:
            return None
        entry = self._try(at, partial(entry_of, read, self._place))
        return None if entry is None else (read, entry)

    def _refuse_twice(self, entries: list[Written]) -> None:
        """Find the entries that want what one before them wants."""
        rest = entries
        while rest:
            try:
                refuse_twice(one.entry for one in rest)
            except UsageError as error:
                at = self._twice(rest)
                self.faults.append((rest[at].line, _said(error)))
                rest = rest[:at] + rest[at + 1 :]
                if len(self.faults) > MAX_FAULTS:
                    return
            else:
                return

    @staticmethod
    def _twice(entries: list[Written]) -> int:
        """Return the first that may not stand beside those before it, by halves."""
        good, bad = 0, len(entries)
        while bad - good > 1:
            middle = (good + bad) // 2
            try:
                refuse_twice(one.entry for one in entries[:middle])
                good = middle
            except UsageError:
                bad = middle
        return bad - 1

    # Tables --------------------------------------------------------------------------

    def _structured(
        self, path: Keys, table: object, kind: type[T], more: Iterable[str] = ()
    ) -> T | None:
        """Return a table as a dataclass, or None where it has faults."""
        if not isinstance(table, dict):
            self._fault(path, UsageError(f"it is a table, not {kind_of(table)}"))
            return None
        _register(kind)
        token = _PLACE.set(self._place)
        try:
            return _CONVERTER.structure(table, kind)
        except ClassValidationError as error:
            self._collect(path, error, {*keys_of(kind), *more})
            _forget_frames(error)
            return None
        finally:
            _PLACE.reset(token)

    def _flags(self, path: Keys, table: object) -> dict[str, Value]:
        said: dict[str, Said] = {k: getattr(table, k) for k in keys_of(type(table))}
        return {
            key: Value(tuple(words), self._line((*path, key)))
            for key, words in said.items()
            if words is not None
        }

    # Faults --------------------------------------------------------------------------

    def _try(self, path: Keys, make: Callable[[], T]) -> T | None:
        try:
            return make()
        except TunnelError as error:
            self._fault(path, error)
            return None

    def _line(self, path: Keys) -> int:
        return line_at(self._lines, path)

    def _fault(self, path: Keys, error: TunnelError) -> None:
        self.faults.append((self._line(path), _said(error, _key_of(path))))

    def _collect(self, path: Keys, error: Exception, known: set[str]) -> None:
        """Note what is wrong within a table, from the errors that cattrs groups."""
        match error:
            case TunnelError():
                self._fault(path, error)
            case Several():
                for index, part in error.faults:
                    self._collect((*path, index), part, known)
            case ForbiddenExtraKeysError():
                for key in error.extra_fields:
                    self._fault((*path, key), _unknown(key, known))
            case BaseValidationError():
                for part in error.exceptions:
                    notes = getattr(part, "__notes__", ())
                    keys = (
                        one.name
                        for one in notes
                        if isinstance(one, AttributeValidationNote)
                    )
                    self._collect((*path, *keys), part, known)
            case _:
                raise error


def _register(kind: type) -> None:
    """Have the values of a table read as its fields say, from now on."""
    if kind in _REGISTERED:
        return
    _REGISTERED.add(kind)
    hooks = {
        one.name: override(struct_hook=partial(_read_value, one.metadata[READ]))
        for one in fields(kind)
    }
    structure = make_dict_structure_fn(kind, _CONVERTER, **hooks)  # type: ignore[arg-type,var-annotated]  # no key is called as its options are
    _CONVERTER.register_structure_hook(kind, structure)


def _read_value(read: Read, value: object, _kind: object) -> Words:
    return read(value, _PLACE.get())


def _is_all(flag: str, table: object) -> bool:
    """Say whether nothing but its table makes an entry: no file, and no variable.

    With a secret in it, it also matters who can read the configuration by now.
    """
    if flag not in ("tcp", "udp", "reach", "http") or not isinstance(table, dict):
        return False
    target = str(table.get("target"))
    is_address = target.isdigit() or (":" in target and "/" not in target)
    return is_address and not table.keys() & _NOT_ALL


def _forget_frames(error: BaseException) -> None:
    """Part errors from the frames that collected them: each knows the other."""
    inner = [error.__context__] if error.__context__ else []
    if isinstance(error, BaseExceptionGroup):
        inner += error.exceptions
    elif isinstance(error, Several):
        inner += (one for _, one in error.faults)
    error.__traceback__ = None
    for one in inner:
        _forget_frames(one)


def keys_of(table: type) -> tuple[str, ...]:
    """Return the keys of a table of the schema."""
    return tuple(one.name for one in fields(table))


def _key_of(path: Keys) -> str:
    """Return the key that a fault is about; empty if it is a table."""
    tables = {"users"} if path[0] == "server" else ENTRIES.keys()
    keys = path[3:4] if tables & set(path[1:2]) else path[1:2]
    return str(keys[0]) if keys else ""


def _unknown(key: str, known: Iterable[str]) -> UsageError:
    known = sorted(known)
    fix = meant(key.replace("-", "_"), known, f"known: {', '.join(known)}")
    return UsageError(f"{key!r} is no key", fix=fix)


def _said(error: TunnelError, key: str = "") -> str:
    """Return an error in one line, in which a flag is a key."""
    fix = _FLAG_IN_FIX.sub(r'--\1 = "\2"', error.fix)
    if "tunnel " in fix:  # a command
        fix = ""
    parts = [error.what, error.cause, fix]
    told = [_DASHED.sub(lambda one: one[1].replace("-", "_"), one) for one in parts]
    if key and not re.search(rf"\b{re.escape(key)}\b", told[0]):
        told[0] = f"{key}: {told[0]}"
    return "; ".join(one for one in told if one)
