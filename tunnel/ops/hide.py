"""Keep the secrets of a command line out of ``ps``.

Every user of a machine can read the argument list of every program. When ours holds a
secret, the program executes itself again with the secret masked; the real words travel
in a descriptor that is inherited. The process stays the same, with its standard files.
Imports nothing heavy: all of it is loaded twice.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Final

from tunnel.platform.process import (
    hold_back,
    inherited,
    let_through,
    set_short_name,
    short_name,
)

VARIABLE: Final = "_TUNNEL_ARGUMENTS"
"""Tells the program, executed again, the number of the descriptor; removed at once."""


def hide_secrets() -> str:
    """Execute the program again if its argument list shows a secret.

    After that, put the real words into ``sys.argv``. Where any of this does not work,
    the program goes on as it was started, and this returns why others see its secrets.
    """
    number = os.environ.pop(VARIABLE, None)
    if number is not None:
        _take_back(number)
    elif any(":" in word or "dashboard" in word for word in sys.argv[1:]):
        return _execute_masked()
    return ""


def _execute_masked() -> str:
    from tunnel.redaction import masked

    words = sys.argv[1:]
    shown = masked(words)
    # Else another program runs this code, and its arguments are not these.
    ours = sys.orig_argv[len(sys.orig_argv) - len(words) :] == words
    secret = [
        word for word, instead in zip(words, shown, strict=True) if word != instead
    ]
    if not any(word in sys.orig_argv for word in secret):
        return ""  # nothing to hide, or the words came here by another way
    if not ours or not sys.executable:
        return "it is not known how this program was started"
    try:
        number = inherited(json.dumps([short_name(), words]).encode())
    except OSError as error:
        return error.strerror or str(error)
    try:
        before = sys.orig_argv[1 : len(sys.orig_argv) - len(words)]
        told = os.environ | {VARIABLE: str(number)}
        if os.getpid() == 1:  # else SIGTERM would be lost until we listen again
            hold_back(signal.SIGTERM)
        os.execve(sys.executable, [sys.executable, *before, *shown], told)  # noqa: S606
    except OSError as error:
        let_through(signal.SIGTERM)
        os.close(number)
        return error.strerror or str(error)


def _take_back(number: str) -> None:
    from tunnel.redaction import masked

    try:
        with open(int(number), "rb") as file:
            comm, words = json.loads(file.read())
        if masked(words) == sys.argv[1:]:
            sys.argv[1:] = words
            set_short_name(comm)
    except (OSError, TypeError, ValueError):
        return
