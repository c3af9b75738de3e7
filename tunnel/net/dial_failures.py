"""Why a target cannot be reached: the kernel's and the resolver's words as codes."""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING, Final, NoReturn

from tunnel.addresses import UnixPath
from tunnel.errors import Code, LocalStreamError
from tunnel.net.lookup import LookupsBusyError, is_unknown, why_not_found

if TYPE_CHECKING:
    from tunnel.addresses import End

_BY_ERRNO: Final = {
    errno.ECONNREFUSED: Code.REFUSED,
    errno.ENETUNREACH: Code.NET_UNREACHABLE,
    errno.EAFNOSUPPORT: Code.NET_UNREACHABLE,  # a kernel without IPv6
    errno.EHOSTUNREACH: Code.HOST_UNREACHABLE,
    errno.ETIMEDOUT: Code.TIMEOUT,
    errno.EACCES: Code.NOT_ALLOWED,
    errno.EPERM: Code.NOT_ALLOWED,
    errno.EMFILE: Code.RESOURCE,
    errno.ENFILE: Code.RESOURCE,
    errno.ENOBUFS: Code.RESOURCE,
    errno.ENOMEM: Code.RESOURCE,
    errno.EADDRNOTAVAIL: Code.RESOURCE,
}

_TELLING: Final = (
    Code.REFUSED,  # the target's machine itself answered
    Code.TIMEOUT,  # packets left, and may have arrived
    Code.HOST_UNREACHABLE,  # a router near the target answered
    Code.NOT_ALLOWED,  # this machine forbade it
    Code.RESOURCE,  # this machine was too short of something even to try
    Code.NET_UNREACHABLE,  # what any IPv6 address says on an IPv4 machine
    Code.GENERAL,
)
"""The order in which one of several failures speaks for all: who got furthest first."""

_CAUSES: Final = {
    Code.REFUSED: "the machine answers, but nothing listens on this port",
    Code.TIMEOUT: "nobody answered in time: switched off, or a firewall drops packets",
    Code.HOST_UNREACHABLE: "the network there knows no such machine",
    Code.NOT_ALLOWED: "a firewall of this machine forbids it",
    Code.RESOURCE: "this machine is short of descriptors, ports or memory",
    Code.NET_UNREACHABLE: "this machine has no route to that network",
}

_UNIX_CAUSES: Final = {
    Code.REFUSED: "nobody listens on it: a file was left there, or is no socket",
    Code.NOT_ALLOWED: "its mode, or that of a folder above, keeps this user out",
}


Failure = OSError | UnicodeError | LocalStreamError
"""Of one attempt, of a host that cannot be looked up, of a target that is refused."""


def unusable(target: End, cause: str) -> LocalStreamError:
    """Return the refusal of a target that nobody should be asked about."""
    if isinstance(target, UnixPath):
        what = f"cannot use the path {target.path!r}"
    else:
        what = f"cannot use the address {target.host!r}, port {target.port}"
    return LocalStreamError(Code.ADDRESS_UNSUPPORTED, what, cause)


def no_address() -> OSError:
    """Return the failure of a look-up that found nothing."""
    return socket.gaierror(socket.EAI_NODATA, "the name has no IP address")


def not_allowed(target: End) -> LocalStreamError:
    """Return the refusal of a target none of whose addresses may be dialled."""
    what = f"{target} may not be reached from here"
    return LocalStreamError(Code.NOT_ALLOWED, what, "the rules forbid this address")


def give_up(target: End, failures: list[Failure]) -> NoReturn:
    """Raise the refusal, or the most telling failure for all of them.

    Raises:
        LocalStreamError: always.
    """
    if isinstance(failures[-1], LocalStreamError):
        raise failures.pop()  # kept here it would hold this frame, a cycle
    if isinstance(failures[-1], UnicodeError):
        raise unusable(target, "the host is not a valid name") from None
    errors = (failure for failure in failures if isinstance(failure, OSError))
    error = min(errors, key=lambda error: _TELLING.index(_code_of(error)))
    code = _code_of(error)
    reason = (error.strerror or str(error)).lower()
    if isinstance(target, UnixPath):
        code, reason, cause = _unix_failure(error, code, reason)
    elif isinstance(error, LookupsBusyError):
        cause = f"the name {target.host} could not be looked up"
    elif isinstance(error, socket.gaierror):
        reason = why_not_found(error)
        cause = "the resolver of this machine is down, or cannot be reached"
        if is_unknown(error):
            cause = f"the resolver of this machine knows no address of {target.host}"
    else:
        cause = _CAUSES.get(code, "")
    raise LocalStreamError(code, f"cannot reach {target}: {reason}", cause) from error


def _unix_failure(error: OSError, code: Code, reason: str) -> tuple[Code, str, str]:
    """Return code, reason and cause in the words of unix sockets."""
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        cause = "the program that makes this socket does not run"
        return Code.REFUSED, "no such file", cause
    if code is Code.TIMEOUT:
        return code, "its backlog stays full", "the program behind it does not accept"
    return code, reason, _UNIX_CAUSES.get(code, "")


def _code_of(error: OSError) -> Code:
    if isinstance(error, socket.gaierror):
        # Never TIMEOUT: nobody has asked the target yet.
        no_memory = error.errno == socket.EAI_MEMORY
        return Code.RESOURCE if no_memory else Code.HOST_UNREACHABLE
    return _BY_ERRNO.get(error.errno or 0, Code.GENERAL)
