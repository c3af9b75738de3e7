"""Ask a running process over its control socket (``control.service``), without trio."""

from __future__ import annotations

import errno
import json
import os
import stat
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from tunnel.errors import Code, Exit, StateError, TunnelError
from tunnel.platform.descriptors import receive_descriptors
from tunnel.platform.process import user_id
from tunnel.platform.sockets import open_unix_socket, peer_process

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping
    from pathlib import Path

FILE: Final = "control"
"""The socket of a server, in its state folder."""
ANSWER_S: Final = 20.0
"""How long an answer is waited for: a server under load writes its files in that."""
MAX_ANSWER_BYTES: Final = 67_108_864
"""Ten thousand users with hundreds of rights each."""
_NOBODY: Final = (errno.ENOENT, errno.ECONNREFUSED)
_SAID: Final = ("what", "cause", "fix")


class AnswerError(TunnelError):
    """What a running process has refused, in its own words."""

    def __init__(self, what: str, cause: str, fix: str, status: Exit) -> None:
        super().__init__(Code.GENERAL, what, cause, fix)
        self._status = status


def ask(state: Path, do: str, args: Mapping[str, object]) -> dict[str, object] | None:
    """Have the server of a state folder do a command; None where none runs.

    Raises:
        StateError: the socket is another user's, or the answer does not come.
        AnswerError: the server has refused.
    """
    return ask_at(state / FILE, f"the server of {state}", do, args)


def ask_at(
    path: Path,
    who: str,
    do: str,
    args: Mapping[str, object],
    answer_s: float = ANSWER_S,
) -> dict[str, object] | None:
    """Have the process behind a socket do a command; None where nobody listens.

    ``who`` is what errors call it. Raises as ``ask`` does.
    """
    try:
        with open_question(path, who, do, args, answer_s) as sock:
            return read_answer(sock, who)
    except TimeoutError:
        raise StateError(f"{who} does not answer") from None
    except OSError as error:
        if is_nobody(error):
            return None
        why = error.strerror or str(error)
        raise StateError(f"cannot ask {who}", why) from error


def is_nobody(error: OSError) -> bool:
    """Say whether this is what a socket without a listener, or none at all, gives."""
    return error.errno in _NOBODY or "too long" in str(error)


def open_question(
    path: Path,
    who: str,
    do: str,
    args: Mapping[str, object],
    answer_s: float = ANSWER_S,
) -> socket.socket:
    """Ask, and return the socket that the answer comes from; the caller closes it.

    Each wait on it, those in here too, lasts ``answer_s`` at most.

    Raises:
        OSError: see ``is_nobody``.
        StateError: it is another user's, or no socket.
    """
    found = os.stat(path)
    if not stat.S_ISSOCK(found.st_mode):
        raise StateError(f"{path} is no socket", fix=f"rm {path}")
    if user_id() not in (None, found.st_uid):
        raise _foreign(who, found.st_uid)
    sock = open_unix_socket()
    try:
        sock.settimeout(answer_s)
        sock.connect(str(path))
        peer = peer_process(sock)
        if peer is not None and peer.user != user_id():
            raise _foreign(who, peer.user)
        with suppress(BrokenPipeError):  # it may refuse before it has all
            sock.sendall(json.dumps({"do": do, "with": args}).encode() + b"\n")
    except BaseException:
        sock.close()
        raise
    return sock


def read_answer(sock: socket.socket, who: str) -> dict[str, object]:
    """Wait for the answer; raises as ``ask`` does, and OSError."""
    line = bytearray()
    while not line.endswith(b"\n"):
        came = sock.recv(65_536)
        if not came or len(line) > MAX_ANSWER_BYTES:
            break
        line += came
    return _read(bytes(line), who)


def read_handed(sock: socket.socket, who: str) -> list[int]:
    """Return the descriptors of an answer, which the caller closes.

    Raises as ``ask`` does, and OSError.
    """
    raw, descriptors = receive_descriptors(sock, 65_536, 1)
    if not descriptors:
        _read(raw, who)  # it says why
    return descriptors


def _foreign(who: str, user: int) -> StateError:
    why = f"it is that of user {user}"
    return StateError(f"{who} is not asked", why, f"sudo -u '#{user}' tunnel …")


def _read(line: bytes, who: str) -> dict[str, object]:
    try:
        answer: object = json.loads(line)
    except (ValueError, RecursionError):
        answer = None
    if isinstance(answer, dict):
        done, failed = answer.get("done"), answer.get("failed")
        if isinstance(done, dict):
            return done
        if isinstance(failed, dict):
            what, cause, fix = (str(failed.get(key, "")) for key in _SAID)
            status = failed.get("status")  # of a newer process, it may be a new one
            known = Exit(status) if status in list(Exit) else Exit.INTERNAL
            raise AnswerError(what, cause, fix, known)
    raise StateError(f"{who} gave no answer", "it may have ended")
