"""Ask a running server over its control socket (``ops.control``), without trio."""

from __future__ import annotations

import errno
import json
import os
import stat
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from tunnel.errors import Code, Exit, StateError, TunnelError
from tunnel.platform.process import user_id
from tunnel.platform.sockets import open_unix_socket, peer_process

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping
    from pathlib import Path

FILE: Final = "control"
ANSWER_S: Final = 20.0
"""How long an answer is waited for: a server under load writes its files in that."""
MAX_ANSWER_BYTES: Final = 67_108_864
"""Ten thousand users with hundreds of rights each."""
_NOBODY: Final = (errno.ENOENT, errno.ECONNREFUSED)


class AnswerError(TunnelError):
    """What a running server has refused, in its own words."""

    def __init__(self, what: str, cause: str, fix: str, status: Exit) -> None:
        super().__init__(Code.GENERAL, what, cause, fix)
        self._status = status


def ask(state: Path, do: str, args: Mapping[str, object]) -> dict[str, object] | None:
    """Have the server of a state folder do a command; None where none runs.

    Raises:
        StateError: the socket is another user's, or the answer does not come.
        AnswerError: the server has refused.
    """
    path = state / FILE
    try:
        found = os.lstat(path)
        if not stat.S_ISSOCK(found.st_mode):
            raise StateError(f"{path} is no socket", fix=f"rm {path}")
        if user_id() not in (None, found.st_uid):
            raise _foreign(state, found.st_uid)
        with open_unix_socket() as sock:
            sock.settimeout(ANSWER_S)
            sock.connect(str(path))
            peer = peer_process(sock)
            if peer is not None and peer.user != user_id():
                raise _foreign(state, peer.user)
            with suppress(BrokenPipeError):  # it may refuse before it has all
                sock.sendall(json.dumps({"do": do, "with": args}).encode() + b"\n")
            line = _line(sock)
    except TimeoutError:
        raise StateError(f"the server of {state} does not answer") from None
    except OSError as error:
        if error.errno in _NOBODY or "too long" in str(error):
            return None
        why = error.strerror or str(error)
        raise StateError(f"cannot ask the server of {state}", why) from error
    return _read(line, state)


def _foreign(state: Path, user: int) -> StateError:
    why = f"it is that of user {user}"
    fix = f"sudo -u '#{user}' tunnel … --state {state}"
    return StateError(f"the server of {state} is not asked", why, fix)


def _line(sock: socket.socket) -> bytes:
    line = bytearray()
    while not line.endswith(b"\n"):
        came = sock.recv(65_536)
        if not came or len(line) > MAX_ANSWER_BYTES:
            break
        line += came
    return bytes(line)


def _read(line: bytes, state: Path) -> dict[str, object]:
    try:
        answer: object = json.loads(line)
    except ValueError:
        answer = None
    if isinstance(answer, dict):
        done, failed = answer.get("done"), answer.get("failed")
        if isinstance(done, dict):
            return done
        if isinstance(failed, dict):
            what, cause, fix = (str(failed.get(key, "")) for key in _SAID)
            status = failed.get("status")  # of a newer server, it may be a new one
            known = Exit(status) if status in list(Exit) else Exit.INTERNAL
            raise AnswerError(what, cause, fix, known)
    raise StateError(f"the server of {state} gave no answer", "it may have ended")


_SAID: Final = ("what", "cause", "fix")
