"""``tunnel why``: what a connection waits for, from the process that carries it."""

from __future__ import annotations

import json
from pathlib import Path  # noqa: TC003 - cyclopts reads the annotations
from typing import Annotated

from cyclopts import Parameter

from tunnel.errors import Exit, UsageError
from tunnel.words import escaped


def why(
    connection: str = "",
    /,
    *,
    state: Path | None = None,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> int:
    """Say why a connection is slow: what it waits for, now and in the last minute.

    Args:
        connection: Its id, as in `tunnel why` without one, which lists those that wait.
        state: The server's folder, if it is not the usual one.
        as_json: Each line of stdout is a JSON object.
    """
    from tunnel.ops.ask import ask
    from tunnel.ops.saved import state_folder
    from tunnel.ops.why_text import listed_line, why_lines

    folder = (state or state_folder()).absolute()
    answer = ask(folder, "why", {"connection": connection})
    if answer is None:
        raise UsageError(f"no server of {folder} runs", fix="tunnel serve")
    key = "found" if connection else "listed"
    told = answer.get(key)
    for one in told if isinstance(told, list) else []:
        if as_json:
            print(json.dumps(one), flush=True)
        else:
            lines = why_lines(one) if connection else [listed_line(one)]
            print("\n".join(map(escaped, lines)), flush=True)
    return Exit.OK
