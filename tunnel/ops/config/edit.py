"""The text of a configuration file with an entry more, or one less: pure.

What else is in the text stays as it is, byte for byte.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunnel.errors import UsageError
from tunnel.ops.config.lines import spans_of
from tunnel.ops.entry_values import split_words
from tunnel.words import as_toml

if TYPE_CHECKING:
    from collections.abc import Mapping

Rows = dict[str, str | bool | list[str]]
"""The keys of a table."""


def rows_of(flag: str, text: str) -> Rows:
    """Return what a table says where a flag of ``tunnel up`` says ``text``.

    Args:
        flag: as the file calls it: ``be_exit``.
        text: what the flag takes.
    """
    body, said = split_words(text)
    rows = _named(flag, body)
    for name, value in said:
        key = name.replace("-", "_")
        had = rows.get(key)
        if value is None:
            rows[key] = True
        elif had is None or key == "proxy":  # the last one counts
            rows[key] = value
        else:
            rows[key] = [*(had if isinstance(had, list) else [str(had)]), value]
    return rows


def _named(flag: str, body: str) -> Rows:
    """Return the keys of what stands before the words of an entry."""
    if flag == "be_exit":
        return {"name": body}
    if flag == "socks":
        return {"listen": body}
    if flag in ("http", "https"):
        name, _, target = body.partition("=")
        return {"name": name, "target": target}
    before, _, target = body.rpartition("=")
    key = "listen" if flag == "reach" else "remote"
    return {key: before, "target": target} if before else {"target": target}


def with_entry(text: str, flag: str, rows: Mapping[str, object]) -> str:
    """Return a text with a table more at its end, in the line ends that it has."""
    end = "\r\n" if text.partition("\n")[0].endswith("\r") else "\n"
    if text and not text.endswith("\n"):
        text += end
    lines = [f"[[client.{flag}]]", *(f"{k} = {as_toml(v)}" for k, v in rows.items())]
    if text:
        lines.insert(0, "")
    return text + "".join(line + end for line in lines)


def without_entry(text: str, flag: str, index: int) -> str:
    """Return a text without one of the tables of a flag, counted from 0.

    What goes is the line of its header to that of its last value, and an empty line
    that would stand beside another one. ``text`` is a valid file.

    Raises:
        UsageError: it has no header of its own.
    """
    span = spans_of(text).get(("client", flag, index))
    if span is None:
        raise UsageError(
            f"the entry has no [[client.{flag}]] of its own",
            "it stands within a list",
        )
    head = text[: text.rfind("\n", 0, span[0]) + 1]
    tail = text[(text.find("\n", span[1]) + 1) or len(text) :]
    above = head.rfind("\n", 0, len(head) - 1) + 1
    if not tail or _is_empty(tail.partition("\n")[0]):
        if head and _is_empty(head[above:]):
            head = head[:above]
        elif not head:
            tail = tail.partition("\n")[2]
    return head + tail


def _is_empty(line: str) -> bool:
    return not line.strip()
