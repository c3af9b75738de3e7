"""How much one user may have: the words that say it, and what they mean.

Pure: who counts is elsewhere. A word is ``NAME=VALUE``, on a command line and in a file
alike; ``none`` stands for no limit of the user's own where one is not needed:

    links=2048 sessions=1024 waiting=1024 ports=4096 names=4096 connections=100
    opens=50/s rate=5MB/s (or up=1MB/s and down=5MB/s) month=100GB datagrams=1000/s
    visitors=64
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace
from decimal import Decimal
from typing import TYPE_CHECKING, Final, NamedTuple

from tunnel.errors import UsageError
from tunnel.words import meant

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


@dataclass(frozen=True, slots=True)
class Limits:
    """What one user may have; by default what a fleet of devices needs.

    None is no limit of the user's own: those of the session and of the process hold.
    """

    links: int = 2_048
    """Links at once: one for each session, and one that takes over from it."""
    sessions: int = 1_024
    """Sessions at once: the devices of a fleet that share one token."""
    waiting: int = 1_024
    """Sessions at once that have no link: after an outage all of the fleet."""
    ports: int = 4_096
    """Public ports at once, TCP and UDP together; each is a descriptor."""
    names: int = 4_096
    """Host names and names of exits at once, all clients of the user together."""
    connections: int | None = None
    """Connections at once, TCP and UDP, of visitors and of the user's own programs."""
    opens: int | None = None
    """Connections that may begin in a second; as many may at once."""
    up: int | None = None
    """Bytes per second from the user's machines to the server."""
    down: int | None = None
    """Bytes per second from the server to the user's machines."""
    month: int | None = None
    """Bytes per calendar month (UTC), both ways together."""
    datagrams: int | None = None
    """Datagrams per second, both ways together; what is over is dropped, as UDP is."""
    visitors: int | None = None
    """Visitors of one address at once at what the user publishes; None: the server's
    ``--max-per-address``."""

    said: frozenset[str] = frozenset()
    """Fields that were said, and whose value is the default all the same."""

    def over(self, base: Limits) -> Limits:
        """Return these limits, with those of ``base`` where nothing was said."""
        said = base.said | self.said
        return replace(base, said=said, **self._said())  # type: ignore[arg-type]

    def _said(self) -> dict[str, int | None]:
        return {
            one.name: getattr(self, one.name)
            for one in fields(self)
            if one.name != "said"
            and (getattr(self, one.name) != one.default or one.name in self.said)
        }

    @property
    def words(self) -> tuple[str, ...]:
        """Return the words that say this; ``parse_limits`` reads them back."""
        values = self._said()
        if values.get("up") == values.get("down"):
            values = {
                "rate" if name == "up" else name: value
                for name, value in values.items()
                if name != "down"
            }
        return tuple(
            f"{name}={_WORDS[name].form.write(value)}" for name, value in values.items()
        )


class _Count:
    """A number of things at once."""

    example = "100"
    suffix = ""

    def read(self, text: str) -> int | None:
        """Return the number; None if the text is none."""
        number = text.removesuffix(self.suffix)
        if not text.endswith(self.suffix) or not re.fullmatch("[0-9]{1,18}", number):
            return None
        return int(number)

    def write(self, number: int | None) -> str:
        """Return the text of a number, as ``read`` takes it."""
        return NONE if number is None else f"{number}{self.suffix}"


class _PerSecond(_Count):
    """A number of things in a second."""

    example = "100/s"
    suffix = "/s"


class _Bytes(_Count):
    """An amount of bytes, with a unit."""

    example = "100GB"

    def read(self, text: str) -> int | None:
        size = text.removesuffix(self.suffix)
        found = re.fullmatch(r"([0-9]{1,18}(?:\.[0-9]{1,9})?) ?([KMGT]i?B|kB|B)", size)
        if not text.endswith(self.suffix) or found is None:
            return None
        return int(Decimal(found[1]) * _UNITS[found[2]])

    def write(self, number: int | None) -> str:
        if number is None:
            return NONE
        unit = next(one for one in _LARGEST_FIRST if not number % _UNITS[one])
        return f"{number // _UNITS[unit]}{unit}{self.suffix}"


class _BytesPerSecond(_Bytes):
    """A rate, in bytes."""

    example = "5MB/s"
    suffix = "/s"


class _Word(NamedTuple):
    form: _Count
    least: int
    most: int
    may_be_none: bool = True


NONE: Final = "none"
_UNITS: Final = {
    "B": 1,
    "kB": 10**3,
    **{f"{letter}B": 10 ** (3 * at) for at, letter in enumerate("KMGT", 1)},
    **{f"{letter}iB": 1 << (10 * at) for at, letter in enumerate("KMGT", 1)},
}
_LARGEST_FIRST: Final = ("TB", "GB", "MB", "KB", "TiB", "GiB", "MiB", "KiB", "B")
_RATE: Final = _Word(_BytesPerSecond(), 1_000, 10**12)
_AT_ONCE: Final = 16_384
"""As many links and entries as one server has for all its users."""
_WORDS: Final = {
    "links": _Word(_Count(), 1, _AT_ONCE, may_be_none=False),
    "sessions": _Word(_Count(), 1, _AT_ONCE, may_be_none=False),
    "waiting": _Word(_Count(), 0, _AT_ONCE, may_be_none=False),
    "ports": _Word(_Count(), 0, _AT_ONCE, may_be_none=False),
    "names": _Word(_Count(), 0, _AT_ONCE, may_be_none=False),
    "connections": _Word(_Count(), 1, 10**7),
    "opens": _Word(_PerSecond(), 1, 10**6),
    "rate": _RATE,
    "up": _RATE,
    "down": _RATE,
    "month": _Word(_Bytes(), 1_000, 10**17),
    "datagrams": _Word(_PerSecond(), 1, 10**8),
    "visitors": _Word(_Count(), 1, 65_536),
}
LIMIT_WORDS: Final = {name: word.form.example for name, word in _WORDS.items()}
"""Each limit that can be said, with an example of its value."""


def parse_limits(
    words: Iterable[str], where: str = "", base: Limits | None = None
) -> Limits:
    """Read limits.

    Args:
        words: ``NAME=VALUE``, each name at most once; ``rate`` is ``up`` and ``down``.
        where: the place of the words, for an error: a file and a line, an option.
        base: has what the words do not say; None: the defaults.

    Raises:
        UsageError: a word, a unit or a number is none; it names ``where`` and what was
            meant, as far as that can be told.
    """
    place = f"{where}: " if where else ""
    said: dict[str, int | None] = {}
    for word in words:
        for name, value in _read(word, place):
            if name in said:
                what = f"{place}{word} says {name} a second time"
                raise UsageError(what, fix="leave one of them out")
            said[name] = value
    base = base or Limits()
    # ``none`` takes back what was said before: the server's own limit holds.
    usual = Limits()
    kept = base.said.difference(said) | {
        one for one, value in said.items() if value and value == getattr(usual, one)
    }
    # The table says which may be None.
    return replace(base, said=kept, **said)  # type: ignore[arg-type]


def bytes_in(text: str) -> int | None:
    """Return the bytes that a size says, as ``64MiB``; None if it is none."""
    return _Bytes().read(text)


def _read(word: str, place: str) -> Iterator[tuple[str, int | None]]:
    """Yield each field that a word says, with its value."""
    name, equals, text = word.partition("=")
    name, text = name.strip(), text.strip()
    known = _WORDS.get(name)
    if known is None:
        forms = {one: f"{one}={takes}" for one, takes in LIMIT_WORDS.items()}
        what, fix = f"{place}{name!r} is no limit", meant(name.lower(), forms)
        raise UsageError(what, "known: " + ", ".join(_WORDS), fix)
    if text == NONE and known.may_be_none:
        value = None
    else:
        value = known.form.read(text)
        if value is None or not known.least <= value <= known.most:
            raise _no_value(place, name, known, text if equals else "", value)
    if name == "rate":
        yield "up", value
        yield "down", value
    else:
        yield name, value


def _no_value(
    place: str, name: str, known: _Word, text: str, value: int | None
) -> UsageError:
    write = known.form.write
    why = f"it is from {write(known.least)} to {write(known.most)}"
    if known.may_be_none:
        why += f", or {NONE}"
    says = f"--{name} " if place == f"--{name}: " else f"{name}="
    fix = f"for example {says}{known.form.example}"
    if value is None and isinstance(known.form, _Bytes):
        if re.search(r"[0-9] ?[kmgtKMGT]?(b|bit)(/s|ps)$", text):
            why = "limits are in bytes, of 8 bits"
            fix = f"40 Mbit/s are {says}5MB/s"
        elif nearest := _nearest_unit(text, known.form.suffix):
            fix = f"did you mean {says}{nearest}?"
    return UsageError(f"{place}{text!r} is no value of {name}", why, fix)


def _nearest_unit(text: str, suffix: str) -> str:
    """Return the amount with the unit that is next to what was written, or nothing."""
    found = re.match(r"([0-9]{1,15}(?:\.[0-9]{1,9})?) ?([A-Za-z]*)", text)
    if found is None:
        return ""
    unit = found[2]
    for one in _UNITS:
        if unit and one.lower() in (unit.lower(), f"{unit}b".lower()):
            return f"{found[1]}{one if one != 'kB' else 'KB'}{suffix}"
    return f"{found[1]}MB{suffix}" if not unit else ""
