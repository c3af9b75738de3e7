"""The entries in the file of a running client, as ``--save`` of commands changes them.

A file is replaced only by one that says what it said and what is wanted.
"""

from __future__ import annotations

import codecs
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from tunnel.access.files import insist_unwritable
from tunnel.errors import ConfigError, StateError, UsageError
from tunnel.ops.config.content import MAX_BYTES, Replacement, decoded, raw_content
from tunnel.ops.config.edit import rows_of, with_entry, without_entry
from tunnel.ops.config.lines import spans_of
from tunnel.ops.config.place import Place
from tunnel.ops.config.read import parse_config
from tunnel.words import is_utf_8

if TYPE_CHECKING:
    from collections.abc import Container, Iterable

    from tunnel.ops.config.edit import Rows
    from tunnel.ops.config.read import ClientSection, Written
    from tunnel.ops.entries import Entry

_SECTIONS: Final[tuple[Literal["client"]]] = ("client",)
_BY_HAND: Final = "without --save, and the file by hand"


@dataclass(frozen=True, slots=True)
class Edit:
    """A change of the file that is ready: the caller puts or drops what replaces it."""

    entry: Entry
    """The one that comes or goes, as the file has it."""
    file: Replacement


def adding(
    path: Path, given: Container[str], flag: str, text: str, entry: Entry
) -> Edit:
    """Have a file end with one entry more; reads and writes files.

    Args:
        path: of the file.
        given: flags of entries that were given otherwise: the file's do not count.
        flag: of ``tunnel up``, as the file calls it: ``be_exit``.
        text: what the flag takes.
        entry: what that says.

    Raises:
        TunnelError: the file is wrong, cannot be written, or would not say what is
            wanted. It is as it was.
    """
    if flag in given:
        word = f"--{flag.replace('_', '-')}"
        what = f"the entries of {flag} in {path} do not count for this client"
        why = f"it was started with {word}, or a variable for it"
        raise UsageError(what, why, f"without --save, or all {word} in the file")
    file = _Read(path)
    if any(one.flag == flag for one in file.entries) and not file.has_header(flag):
        what = f"{flag} is a list in {path}"
        raise UsageError(what, "no table can follow that", _BY_HAND)
    rows = _from_anywhere(flag, rows_of(flag, text))
    new = with_entry(file.text, flag, rows)
    after = file.parsed(new)
    added = [one for one in after if one.flag == flag][-1:]
    if not added or _said(after) != _said([*file.entries, *added]):
        raise _not_as_wanted(path)
    made = added[0].entry
    if made != entry and "ca" not in rows:  # whose path may be another
        raise _not_as_wanted(path)
    return Edit(made, file.replaced(new))


def removing(path: Path, given: Container[str], entry: Entry) -> Edit:
    """Have a file have one entry less; as ``adding``."""
    file = _Read(path)
    found = [
        one for one in file.entries if one.flag not in given and one.entry == entry
    ]
    if not found:
        why = "it was given otherwise, or was changed there"
        raise UsageError(f"the entry is not in {path}", why, "without --save")
    last = found[-1]
    of_flag = [one for one in file.entries if one.flag == last.flag]
    index = next(at for at, one in enumerate(of_flag) if one is last)
    try:
        new = without_entry(file.text, last.flag, index)
    except UsageError as error:
        raise UsageError(error.what, error.cause, _BY_HAND) from None
    rest = [one for one in file.entries if one is not last]
    if _said(file.parsed(new)) != _said(rest):
        raise _not_as_wanted(path)
    return Edit(entry, file.replaced(new))


class _Read:
    """A file that was read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._raw, self._status = raw_content(path)
        insist_unwritable(path, self._status)
        self.text = decoded(self._raw)
        self._client = self._parse(self.text)

    @property
    def entries(self) -> tuple[Written, ...]:
        """Those that it has, by their flags."""
        return self._client.entries if self._client else ()

    def has_header(self, flag: str) -> bool:
        """Say whether the entries of a flag are tables, and not within a list."""
        return ("client", flag, 0) in spans_of(self.text)

    def parsed(self, text: str) -> tuple[Written, ...]:
        """Return the entries of a text that is to be written instead.

        Raises:
            StateError: it is wrong, or says something else beside its entries.
        """
        try:
            client = self._parse(text)
        except ConfigError as error:
            why = "; ".join(_without_place(one) for one in error.faults)
            raise StateError(f"{self.path} would be wrong", why) from None
        if _flags(client) != _flags(self._client):
            raise _not_as_wanted(self.path)
        return client.entries if client else ()

    def replaced(self, text: str) -> Replacement:
        """Return the file that is to have another text."""
        mark = codecs.BOM_UTF8 if self._raw.startswith(codecs.BOM_UTF8) else b""
        raw = mark + text.encode() if is_utf_8(text) else b""
        if not is_utf_8(text) or len(raw) > MAX_BYTES:
            why = f"it would have more than {MAX_BYTES} bytes"
            why = why if raw else "what is to be added is not UTF-8"
            raise StateError(f"cannot write {self.path}", why)
        return Replacement(self.path, raw, self._status)

    def _parse(self, text: str) -> ClientSection | None:
        place = Place(self.path, self._status)
        return parse_config(text, place, _SECTIONS).client


def _from_anywhere(flag: str, rows: Rows) -> Rows:
    """Return keys that mean in a file what they mean where the client was started."""
    if flag != "http":
        return rows
    paths = {key: rows[key] for key in ("ca", "target") if key in rows}
    if not _is_folder(str(rows["target"])):
        del paths["target"]
    absolute = {key: Path(str(one)).expanduser() for key, one in paths.items()}
    return {**rows, **{key: str(one.absolute()) for key, one in absolute.items()}}


def _is_folder(target: str) -> bool:
    if "://" in target or target.startswith("unix:") or target.isdigit():
        return False
    return "/" in target or target in (".", "..", "~") or os.path.isdir(target)


def _said(entries: Iterable[Written]) -> Counter[tuple[str, str]]:
    """Return the tables of entries, to be compared."""
    return Counter((one.flag, repr(one.table)) for one in entries)


def _flags(client: ClientSection | None) -> dict[str, tuple[str, ...]]:
    found = client.flags if client else {}
    return {key: one.words for key, one in found.items()}


def _not_as_wanted(path: Path) -> StateError:
    why = "it would not say what it says now and this"
    return StateError(f"cannot write {path}", why, _BY_HAND)


def _without_place(fault: str) -> str:
    """Return a fault without FILE:LINE: of what is not written there is no line."""
    return fault.partition(": ")[2] or fault
