"""What a status says: one tree for both roles, the same keys in every version.

Times are seconds since 1970, sizes bytes, rates bytes per second. What is not known is
null. No field holds a secret.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tunnel.ops.recent import KeptLine


PAUSED: Final = "paused"
"""The state of an entry whose visitors are refused by a command."""


@dataclass(slots=True)
class Passed:
    """What has passed one way and the other, seen from the process that tells."""

    sent_bytes: int = 0
    received_bytes: int = 0
    sent_per_s: float = 0.0
    received_per_s: float = 0.0


@dataclass(slots=True)
class LinkStatus:
    """A client at its server, or the server at its client."""

    id: str
    """The client's short id, by which ``kick`` knows it."""
    peer: str
    user: str | None
    state: str
    """``linked``; ``waiting``: for another link; ``connecting``: for the first."""
    encrypted: bool
    linked_at: float | None
    """When the link came up; null without one."""
    began_at: float | None
    """When its session began."""
    lost_at: float | None
    """When the link was lost for which it waits."""
    rtt_ms: float | None
    resumes: int
    """How often the session went on over another link."""
    connections: int
    waiting: int
    """Of the connections, those that wait for another link."""
    kept_bytes: int
    """Sent and not confirmed, so kept for another link."""
    passed: Passed
    reason: str = ""
    """Why there is no link."""
    retry_s: float | None = None
    """In how many seconds the next attempt begins."""
    agent: str | None = None
    """What the client's program calls itself."""


@dataclass(slots=True)
class EntryStatus:
    """One entry, with both of its ends."""

    name: str
    """By which ``remove`` and ``limit`` know it."""
    kind: str
    public: str | None
    """Where it is reached; null while it is not."""
    target: str | None
    state: str
    """``open``, ``paused``, ``waiting`` for the server's answer, or ``refused``."""
    reason: str = ""
    client: str | None = None
    """At a server: whose it is."""
    connections: int | None = None
    limit_per_s: int | None = None
    passed: Passed | None = None
    """By its visitors since it was opened here; without rates. Null of what listens
    at the client."""


@dataclass(slots=True)
class CertificateStatus:
    """The certificate of a host name, at a server that asks an authority for it."""

    name: str
    until: float | None
    """Null while there is none."""
    reason: str = ""
    """What failed last, or why it has to wait."""


@dataclass(slots=True)
class Fault:
    """A warning or an error of the log."""

    at: float
    level: str
    event: str
    text: str
    fix: str = ""
    """What would help, or what it means; "" if that is not known."""


@dataclass(slots=True)
class Status:
    """A process that runs."""

    name: str
    role: str
    pid: int
    version: str
    began_at: float
    state: str
    """``linked``, ``waiting``, ``connecting``, ``listening`` or ``draining``."""
    address: str
    """Where a server listens, or which server a client is for."""
    connections: int
    waiting: int
    kept_bytes: int
    passed: Passed
    links: list[LinkStatus] = field(default_factory=list)
    entries: list[EntryStatus] = field(default_factory=list)
    certificates: list[CertificateStatus] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)

    def as_answer(self) -> dict[str, object]:
        """Return it as JSON can hold it."""
        return asdict(self)

    @classmethod
    def of_answer(cls, said: Mapping[str, object]) -> Status:
        """Read what another process of this version has made by ``as_answer``."""
        # The tables above say what is of which type.
        status = cls(**_with_passed(said))  # type: ignore[arg-type]
        status.links = [LinkStatus(**one) for one in _rows(said, "links")]  # type: ignore[arg-type]
        status.entries = [EntryStatus(**one) for one in _rows(said, "entries")]  # type: ignore[arg-type]
        certificates = _rows(said, "certificates")
        status.certificates = [CertificateStatus(**one) for one in certificates]  # type: ignore[arg-type]
        status.faults = [Fault(**one) for one in _rows(said, "faults")]  # type: ignore[arg-type]
        return status


def _rows(said: Mapping[str, object], key: str) -> list[dict[str, object]]:
    rows = said[key]
    assert isinstance(rows, list)  # noqa: S101 - one of ours says so
    return [_with_passed(one) for one in rows]


def _with_passed(said: Mapping[str, object]) -> dict[str, object]:
    passed = said.get("passed")
    words = dict(said)
    if isinstance(passed, dict):
        words["passed"] = Passed(**passed)
    return words


@dataclass(slots=True)
class ConnectionStatus:
    """One virtual TCP connection, as ``tunnel top`` shows it."""

    id: str
    """``CLIENT-NUMBER``, by which ``kick`` and ``why`` know it."""
    user: str
    entry: str | None
    target: str | None
    visitor: str | None
    state: str
    passed: Passed
    why: str | None = None
    """What it waits for."""

    def as_answer(self) -> dict[str, object]:
        """Return it as JSON can hold it."""
        return asdict(self)


def faults_of(lines: tuple[KeptLine, ...]) -> list[Fault]:
    """Return the last lines that tell of something wrong."""
    return [
        Fault(
            line.at,
            "error" if line.level >= 40 else "warning",
            line.event,
            line.text,
            line.fix,
        )
        for line in lines
    ]
