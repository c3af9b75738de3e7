"""The parts of protocol.md that are made from the code, and how to find them there.

``python -m tests.support.tables`` writes the generated tables anew.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from tunnel.errors import CODES
from tunnel.proto.state import TRANSITIONS, Signal, StreamState

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

ROOT = Path(__file__).parents[2]
PROTOCOL = ROOT / "protocol.md"


def protocol_text() -> str:
    return PROTOCOL.read_text(encoding="utf-8")


def section(text: str, name: str) -> str:
    """Give what stands between the two markers of ``name``."""
    found = re.search(
        f"<!-- {name}:begin -->\n(.*)<!-- {name}:end -->", text, re.DOTALL
    )
    assert found, f"protocol.md has no markers for {name}"
    return found[1]


def rows(table: str) -> list[list[str]]:
    """Give the cells of a table's rows, without its head."""
    lines = table.strip().splitlines()[2:]
    cells = (re.split(r"(?<!\\)\|", line)[1:-1] for line in lines)
    return [[cell.strip().replace("\\|", "|") for cell in row] for row in cells]


def blocks(text: str, word: str) -> list[str]:
    """Give the contents of the fenced blocks whose info string begins with ``word``."""
    fence = rf"^```{word}(?: [^\n]*)?\n(.*?)^```$"
    return re.findall(fence, text, re.DOTALL | re.MULTILINE)


def table(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |\n"
        for row in lines
    )


def states_table() -> str:
    return table(
        ("state", "meaning", "stays", "goes on"),
        ((state.name, state.value, *_ways(state)) for state in StreamState),
    )


def _ways(state: StreamState) -> tuple[str, str]:
    after = {signal: TRANSITIONS.get((state, signal)) for signal in Signal}
    stays = [signal.value for signal, to in after.items() if to is state]
    leaves = [
        f"{signal.value} → {to.name}"
        for signal, to in after.items()
        if to is not None and to is not state
    ]
    return ", ".join(stays), " · ".join(leaves)


def codes_table() -> str:
    return table(
        (
            *("code", "name", "meaning", "in", "ends"),
            *("retry", "SOCKS5", "HTTP", "exit", "log"),
        ),
        (
            (
                *(f"0x{code:02x}", code.name, info.meaning, info.frames, info.ends),
                "safe" if info.retry_safe else "no",
                *(str(info.socks5), str(info.http), str(int(info.exit_status))),
                info.log_level,
            )
            for code, info in CODES.items()
        ),
    )


TABLES = {"states": states_table, "codes": codes_table}


def main() -> None:
    text = protocol_text()
    for name, make in TABLES.items():
        old = f"<!-- {name}:begin -->\n{section(text, name)}"
        text = text.replace(old, f"<!-- {name}:begin -->\n{make()}")
    PROTOCOL.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
