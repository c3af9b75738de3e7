"""The text of a unit; pure. Every line that takes something away has a reason here.

A unit of the system runs as a user of its own, which systemd makes; it sees no home
folder, writes into its state folder alone, and has no right of root's but to listen on
ports below 1024 where that was asked for. A unit of a user can be given less of this:
what needs a view of the file system of its own is the system's alone.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Role = Literal["serve", "up"]

WATCHDOG_S: Final = 60
"""A loop that has done nothing for so long is restarted. The longest work that holds it
up, a reload of 10,000 entries, takes some seconds."""
STOP_AFTER_DRAIN_S: Final = 7
"""The process is gone 1.5 s after its drain; the rest is for a busy machine."""
DESCRIPTORS: Final = 524_288
"""Linux' hard limit for a service is the same since systemd 240."""
JOIN: Final = "/etc/tunnel/join"
"""Where root keeps the join line of a client, which systemd hands on."""

_MARK: Final = re.compile(r"# Made by `tunnel service install` \(([0-9a-f]{16})\)\.\n")

_EVERYWHERE: Final = """\
UMask=0077
NoNewPrivileges=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources
SystemCallFilter=setrlimit prlimit64
SystemCallErrorNumber=EPERM
"""
"""AF_NETLINK tells which addresses this machine has. The limit of open files is raised
by the program itself."""
_OF_THE_SYSTEM: Final = """\
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
PrivateDevices=yes
DevicePolicy=closed
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
RemoveIPC=yes
KeyringMode=private
"""
"""Not ``PrivateUsers=``: there root's files seem to be nobody's, so that a secret which
only root can write is not known as one, and root's own commands are strangers'."""


@dataclass(frozen=True, slots=True)
class Unit:
    """What a unit starts, and as whom."""

    role: Role
    name: str
    """Without ``.service``."""
    command: Sequence[str]
    """The whole command line; its first word is an absolute path."""
    user: bool = False
    """It is one of a user's own systemd."""
    run_as: str | None = None
    """A user that there is; None: one that systemd makes for it."""
    low_ports: bool = False
    """It listens below 1024."""
    credentials: Sequence[str] = ()
    """``ID:PATH`` of secrets that root alone can read."""
    logs: bool = False
    """It writes below ``/var/log``."""
    drain_s: int = 8

    def text(self) -> str:
        """Return the whole file."""
        body = "".join(f"{line}\n" for line in self._lines())
        digest = hashlib.sha256(body.encode()).hexdigest()[:16]
        return f"# Made by `tunnel service install` ({digest}).\n{body}"

    def _lines(self) -> Iterator[str]:
        what = "server" if self.role == "serve" else "client"
        yield f"# Changes of your own: systemctl{self._of_user} edit {self.name}"
        yield from (
            "",
            "[Unit]",
            f"Description=tunnel {what} ({self.name})",
            *self._after(),
            "# However often it fails, it is started again.",
            "StartLimitIntervalSec=0",
            "",
            "[Service]",
            "Type=notify",
            f"ExecStart={' '.join(map(quoted, self.command))}",
            "ExecReload=/bin/kill -HUP $MAINPID",
            "Restart=on-failure",
            "RestartSec=5s",
            "# A wrong flag or file is as wrong at the next start.",
            "RestartPreventExitStatus=2 3",
            f"TimeoutStopSec={self.drain_s + STOP_AFTER_DRAIN_S}s",
            f"WatchdogSec={WATCHDOG_S}s",
            "Environment=PYTHONDONTWRITEBYTECODE=1",
        )
        if not self.user:
            yield from self._who_and_where()
        yield ""
        yield from _EVERYWHERE.splitlines()
        if not self.user:
            yield from _OF_THE_SYSTEM.splitlines()
            yield from self._capabilities()
        target = "default.target" if self.user else "multi-user.target"
        yield from ("", "[Install]", f"WantedBy={target}")

    @property
    def _of_user(self) -> str:
        return " --user" if self.user else ""

    def _after(self) -> Iterator[str]:
        if not self.user:  # a user's systemd does not know the target
            yield "Wants=network-online.target"
            yield "After=network-online.target"

    def _who_and_where(self) -> Iterator[str]:
        yield f"LimitNOFILE={DESCRIPTORS}"  # a user's systemd may have less to give
        yield f"User={self.run_as}" if self.run_as else "DynamicUser=yes"
        for folder, mode in (("State", "0700"), ("Runtime", "0700")):
            yield f"{folder}Directory={self.name}"
            yield f"{folder}DirectoryMode={mode}"
        yield "ConfigurationDirectory=tunnel"
        if self.logs:
            yield f"LogsDirectory={self.name}"
        yield f"Environment=XDG_STATE_HOME=%S/{self.name}"
        yield f"Environment=XDG_RUNTIME_DIR=%t/{self.name}"
        yield "Environment=XDG_CONFIG_HOME=%E"
        for one in self.credentials:
            yield f"LoadCredential={one}"
        if any(one.startswith("join:") for one in self.credentials):
            yield "Environment=TUNNEL_TO_FILE=%d/join"

    def _capabilities(self) -> Iterator[str]:
        if self.low_ports:
            yield "CapabilityBoundingSet=CAP_NET_BIND_SERVICE"
            yield "AmbientCapabilities=CAP_NET_BIND_SERVICE"
        else:
            yield "CapabilityBoundingSet="


def quoted(word: str) -> str:
    """Return a word as it stands in ``ExecStart=``."""
    text = word.replace("%", "%%").replace("$", "$$")
    if text and re.fullmatch(r"[\w@%$+=:,./-]+", text, re.ASCII):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + escaped.replace("\n", "\\n").replace("\t", "\\t") + '"'


def is_ours(text: str) -> bool:
    """Say whether a unit is as ``Unit.text`` made it, untouched since."""
    mark = _MARK.match(text)
    if mark is None:
        return False
    body = text[mark.end() :]
    return hashlib.sha256(body.encode()).hexdigest()[:16] == mark[1]
