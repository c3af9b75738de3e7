from __future__ import annotations

import errno
import math
import os
import socket
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Final

import pytest
import trio
from support.names import resolve_to, silent
from support.processes import free_port

from tunnel.access.networks import Networks
from tunnel.addresses import LOOPBACKS, Address
from tunnel.errors import Code, LocalStreamError
from tunnel.net import dial
from tunnel.net.dial import MAX_ADDRESSES, Endpoint, connect, probe, resolve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

V4 = socket.AF_INET


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@contextmanager
def no_leak(kept: int = 0) -> Iterator[None]:
    before = open_descriptors()
    yield
    assert open_descriptors() == before + kept


@contextmanager
def listening(host: str = "127.0.0.1", port: int = 0) -> Iterator[int]:
    """A port that the kernel answers on; nobody has to accept."""
    with socket.create_server((host, port)) as sock:
        yield sock.getsockname()[1]


@contextmanager
def refusing(host: str = "127.0.0.1") -> Iterator[int]:
    """A port that is bound, so that nobody else can have it, and not listened on."""
    with socket.socket() as sock:
        sock.bind((host, 0))
        yield sock.getsockname()[1]


class Dials:
    """Stands for the dialling of one address: what happens there, and in what order.

    An outcome is an errno, a number of seconds after which the dial succeeds, or an
    event that it waits for.
    """

    def __init__(self, **outcomes: float | trio.Event) -> None:
        self.outcomes = {
            k.replace("_", ".").replace(":", "."): v for k, v in outcomes.items()
        }
        self.begun: list[tuple[str, float]] = []
        self.sockets: list[socket.socket] = []
        self.start = trio.current_time()

    def begin(self, endpoint: Endpoint, opened: dial.Opened) -> dial._Begun:
        del opened
        self.begun.append((endpoint.host, trio.current_time() - self.start))
        outcome = self._outcome(endpoint.sockaddr)
        if isinstance(outcome, int):
            raise OSError(outcome, os.strerror(outcome))
        sock = socket.socket()
        self.sockets.append(sock)
        return dial._Begun(sock, endpoint.sockaddr, True)

    async def finish(
        self,
        begun: dial._Begun,
        until: float = math.inf,
        within: dial.Within = trio.fail_at,
    ) -> socket.socket:
        try:
            with within(until):
                outcome = self._outcome(begun.sockaddr)
                if isinstance(outcome, trio.Event):
                    await outcome.wait()
                else:
                    await trio.sleep(outcome)
        except BaseException:
            begun.sock.close()
            raise
        return begun.sock

    def _outcome(self, sockaddr: tuple[object, ...] | str) -> float | trio.Event:
        return self.outcomes["h" + str(sockaddr[0]).replace(":", ".")]

    @property
    def open_sockets(self) -> list[socket.socket]:
        return [s for s in self.sockets if s.fileno() != -1]


@pytest.fixture
def dials(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Dials]:
    def install(**outcomes: float | trio.Event) -> Dials:
        made = Dials(**outcomes)
        monkeypatch.setattr(dial, "_begin_one", made.begin)
        monkeypatch.setattr(dial, "_finish", made.finish)
        return made

    return install


@contextmanager
def failing_with(code: Code) -> Iterator[pytest.ExceptionInfo[LocalStreamError]]:
    with pytest.raises(LocalStreamError) as caught:
        yield caught
    assert caught.value.code is code


# --- real sockets


async def test_a_literal_address_is_dialled_without_asking_a_resolver() -> None:
    names = resolve_to(error=AssertionError("asked"))
    with listening() as port, await connect(Address("127.0.0.1", port)) as sock:
        assert sock.getpeername() == ("127.0.0.1", port)
        assert not sock.getblocking()
    assert not names.asked


async def test_a_closed_port_is_refused_and_leaks_nothing() -> None:
    with refusing() as port, no_leak(), failing_with(Code.REFUSED) as caught:
        await connect(Address("127.0.0.1", port))
    assert caught.value.what == f"cannot reach 127.0.0.1:{port}: connection refused"
    assert "nothing listens" in caught.value.cause
    assert isinstance(caught.value.__cause__, ConnectionRefusedError)


async def test_a_name_is_tried_address_by_address_until_one_answers() -> None:
    resolve_to("127.0.0.2", "127.0.0.3")
    with listening("127.0.0.3") as port, no_leak():
        sock = await connect(Address("db.example", port))
        assert sock.getpeername() == ("127.0.0.3", port)
        sock.close()


async def test_a_name_of_which_all_addresses_refuse_is_refused() -> None:
    resolve_to("127.0.0.2", "127.0.0.3")
    with refusing("127.0.0.1") as port, no_leak(), failing_with(Code.REFUSED):
        await connect(Address("db.example", port))


async def test_only_the_addresses_that_are_allowed_are_dialled() -> None:
    resolve_to("127.0.0.2", "127.0.0.3")
    asked: list[tuple[str, int]] = []

    def allow(ip: str, port: int) -> bool:
        asked.append((ip, port))
        return ip == "127.0.0.3"

    with listening("127.0.0.2") as port, listening("127.0.0.3", port):
        address = Address("db.example", port)
        with await connect(address, allow=allow) as sock:
            assert sock.getpeername() == ("127.0.0.3", port)
    assert asked == [("127.0.0.2", port), ("127.0.0.3", port)]


async def test_a_forbidden_address_is_never_dialled() -> None:
    with listening() as port, no_leak(), failing_with(Code.NOT_ALLOWED) as caught:
        await connect(Address("127.0.0.1", port), allow=lambda *_: False)
    assert "rules" in caught.value.cause


async def test_an_ipv4_address_in_ipv6_clothes_is_checked_and_dialled_as_ipv4() -> None:
    asked: list[str] = []

    def allow(ip: str, _port: int) -> bool:
        asked.append(ip)
        return True

    with listening() as port:
        address = Address("::ffff:127.0.0.1", port)
        with await connect(address, allow=allow) as sock:
            assert sock.family == V4
    assert asked == ["127.0.0.1"]


async def test_a_socket_joined_with_itself_is_a_refused_target(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with refusing() as port:
        pass

    def on_that_port(family: int) -> socket.socket:
        sock = socket.socket(family)
        sock.setblocking(False)
        sock.bind(("127.0.0.1", port))
        return sock

    monkeypatch.setattr(dial, "_new_socket", on_that_port)
    with no_leak(), failing_with(Code.REFUSED) as caught:
        await connect(Address("127.0.0.1", port))
    assert "reached only itself" in caught.value.what


async def test_a_process_without_descriptors_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def none_left(family: int) -> socket.socket:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(dial, "_new_socket", none_left)
    with failing_with(Code.RESOURCE):
        await connect(Address("127.0.0.1", 1))


@contextmanager
def unanswered(*addresses: str) -> Iterator[int]:
    """Give a port where a dial never ends, as towards a host that is switched off.

    Its backlog is full, so the kernel drops what comes.
    """
    with ExitStack() as stack:
        port = 0
        for address in addresses:
            listener = stack.enter_context(socket.socket())
            listener.bind((address, port))
            listener.listen(0)
            port = listener.getsockname()[1]
            for _ in range(3):
                filler = stack.enter_context(socket.socket())
                filler.setblocking(False)
                filler.connect_ex((address, port))
        yield port


@pytest.mark.parametrize("addresses", [["127.0.0.2"], ["127.0.0.2", "127.0.0.3"]])
async def test_a_cancelled_dial_leaks_nothing(addresses: list[str]) -> None:
    resolve_to(*addresses)
    with unanswered(*addresses) as port, no_leak(), trio.move_on_after(0.05) as scope:
        await connect(Address("db.example", port))
    assert scope.cancelled_caught


async def test_a_dial_that_takes_too_long_is_a_timeout_and_leaks_nothing() -> None:
    with (
        unanswered("127.0.0.1") as port,
        no_leak(),
        failing_with(Code.TIMEOUT) as caught,
    ):
        await connect(Address("127.0.0.1", port), deadline_s=0.05)
    assert caught.value.what == f"cannot reach 127.0.0.1:{port}: no answer in 0.05 s"


async def test_a_probe_tells_an_answering_port_from_a_closed_one() -> None:
    with listening() as port, refusing() as closed, no_leak():
        assert await probe(Address("127.0.0.1", port))
        assert not await probe(Address("127.0.0.1", closed))


# --- names

gai = socket.gaierror
FAILED: Final = "the resolver failed"


@pytest.mark.parametrize(
    ("error", "code", "why"),
    [
        (gai(socket.EAI_NONAME, "Not known"), Code.HOST_UNREACHABLE, "no such name"),
        (gai(socket.EAI_NODATA, "No address"), Code.HOST_UNREACHABLE, "no such name"),
        (gai(socket.EAI_AGAIN, "Try again"), Code.HOST_UNREACHABLE, FAILED),
        (gai(socket.EAI_FAIL, "Failure"), Code.HOST_UNREACHABLE, FAILED),
        (gai(socket.EAI_MEMORY, "No memory"), Code.RESOURCE, FAILED),
        (OSError(errno.EMFILE, "Too many files"), Code.RESOURCE, "too many files"),
        (UnicodeError("label too long"), Code.ADDRESS_UNSUPPORTED, ""),
    ],
)
@pytest.mark.parametrize("own", [False, True])
async def test_a_name_that_cannot_be_resolved_says_why(
    error: Exception, code: Code, why: str, own: bool
) -> None:
    resolve_to(error=error)
    with failing_with(code) as caught:
        await connect(Address("db.example", 1), own=own)
    assert "db.example" in caught.value.what
    assert why in caught.value.what


async def test_a_name_without_an_ip_address_is_no_host() -> None:
    resolve_to()
    with failing_with(Code.HOST_UNREACHABLE):
        await connect(Address("db.example", 1))


@pytest.mark.parametrize(
    "host",
    [
        "",
        "a b",
        "a\0b",
        "a/b",
        "a@b",
        "[::1]",
        "::g",
        "1:2",
        "x" * 255,
        "a..b",
        "é" * 80,
    ],
)
async def test_a_host_that_cannot_be_one_is_refused_unasked(host: str) -> None:
    names = resolve_to("127.0.0.1")
    with failing_with(Code.ADDRESS_UNSUPPORTED):
        await connect(Address(host, 1))
    assert not names.asked


@pytest.mark.parametrize("port", [0, -1, 65_536])
async def test_a_port_that_cannot_be_dialled_is_refused(port: int) -> None:
    with failing_with(Code.ADDRESS_UNSUPPORTED):
        await connect(Address("127.0.0.1", port))


async def test_names_with_underscores_and_capitals_and_umlauts_are_names() -> None:
    names = resolve_to(error=socket.gaierror(socket.EAI_NONAME, "no"))
    for host in ("_Srv.example.", "bücher.example"):
        with failing_with(Code.HOST_UNREACHABLE):
            await connect(Address(host, 1))
    assert names.asked == [b"_Srv.example.", b"xn--bcher-kva.example"]


async def test_families_take_turns_duplicates_go_and_the_number_is_bounded(
    dials: Callable[..., Dials],
) -> None:
    found = ("::1", "::2", "10.0.0.1", "::2", "10.0.0.1", "::3", "::ffff:10.0.0.9")
    made = dials(**{f"h{host}": errno.ECONNREFUSED for host in (*found, "10.0.0.9")})
    resolve_to(*found)
    with failing_with(Code.REFUSED):
        await connect(Address("db.example", 1))
    hosts = ["::1", "10.0.0.1", "::2", "10.0.0.9", "::3"]
    assert [host for host, _ in made.begun] == hosts
    many = [f"10.0.0.{n}" for n in range(100)]
    resolve_to(*many)
    made = dials(**{f"h{host}": errno.ECONNREFUSED for host in many})
    with failing_with(Code.REFUSED):
        await connect(Address("db.example", 1))
    assert len(made.begun) == MAX_ADDRESSES


async def test_a_resolved_address_is_the_first_that_the_rules_allow() -> None:
    resolve_to("::1", "10.0.0.1", "10.0.0.2")
    asked: list[tuple[str, int]] = []

    def allow(ip: str, port: int) -> bool:
        asked.append((ip, port))
        return ip.startswith("10.")

    found = await resolve(Address("dns.example", 53), allow=allow)
    assert found == Address("10.0.0.1", 53)
    assert asked == [("::1", 53), ("10.0.0.1", 53)]
    with failing_with(Code.NOT_ALLOWED):
        await resolve(Address("dns.example", 53), allow=lambda _ip, _port: False)


async def test_a_name_that_has_no_address_cannot_be_sent_to() -> None:
    resolve_to(error=socket.gaierror(socket.EAI_NONAME, "no"))
    with failing_with(Code.HOST_UNREACHABLE):
        await resolve(Address("dns.example", 53))
    with failing_with(Code.ADDRESS_UNSUPPORTED):
        await resolve(Address("dns.example", 0))


async def test_a_resolver_that_is_silent_is_given_up(
    autojump_clock: trio.testing.MockClock,
) -> None:
    silent()
    for give_up in (connect, resolve):
        with failing_with(Code.HOST_UNREACHABLE) as caught:
            await give_up(Address("dns.example", 53), deadline_s=3)
        assert "the resolver failed (no answer in 3 s)" in caught.value.what


# --- staggering: no address is really dialled, so time may jump


async def test_a_silent_address_delays_the_next_by_a_quarter_second(
    dials: Callable[..., Dials], autojump_clock: trio.testing.MockClock
) -> None:
    """Point 21."""
    resolve_to("10.0.0.1", "10.0.0.2", "10.0.0.3")
    made = dials(h10_0_0_1=99.0, h10_0_0_2=99.0, h10_0_0_3=0.1)
    with no_leak(), await connect(Address("db.example", 1)):
        assert trio.current_time() - made.start == pytest.approx(0.6)
    assert [host for host, _ in made.begun] == ["10.0.0.1", "10.0.0.2", "10.0.0.3"]
    assert [at for _, at in made.begun] == pytest.approx([0, 0.25, 0.5])


async def test_a_failed_address_lets_the_next_begin_at_once(
    dials: Callable[..., Dials], autojump_clock: trio.testing.MockClock
) -> None:
    """Point 21."""
    resolve_to("10.0.0.1", "10.0.0.2")
    made = dials(h10_0_0_1=errno.ECONNREFUSED, h10_0_0_2=0.0)
    with await connect(Address("db.example", 1)):
        assert trio.current_time() == made.start


async def test_the_first_address_may_still_win_after_the_second_began(
    dials: Callable[..., Dials], autojump_clock: trio.testing.MockClock
) -> None:
    resolve_to("10.0.0.1", "10.0.0.2")
    made = dials(h10_0_0_1=0.3, h10_0_0_2=0.2)
    with await connect(Address("db.example", 1)) as sock:
        assert made.open_sockets == [sock]
    assert len(made.begun) == 2


async def test_two_answers_at_the_same_moment_leave_one_open(
    dials: Callable[..., Dials],
    autojump_clock: trio.testing.MockClock,
    nursery: trio.Nursery,
) -> None:
    resolve_to("10.0.0.1", "10.0.0.2")
    answer = trio.Event()
    made = dials(h10_0_0_1=answer, h10_0_0_2=answer)
    nursery.start_soon(set_later, answer)
    with await connect(Address("db.example", 1)) as sock:
        assert len(made.sockets) == 2
        assert made.open_sockets == [sock]


async def test_a_cancellation_at_the_moment_of_the_answer_leaves_nothing_open(
    dials: Callable[..., Dials],
    autojump_clock: trio.testing.MockClock,
    nursery: trio.Nursery,
) -> None:
    resolve_to("10.0.0.1", "10.0.0.2")
    answer = trio.Event()
    made = dials(h10_0_0_1=answer, h10_0_0_2=99.0)
    with trio.CancelScope() as scope:
        nursery.start_soon(set_later, answer, scope)
        await connect(Address("db.example", 1))
    assert scope.cancelled_caught
    assert made.sockets
    assert not made.open_sockets


async def set_later(event: trio.Event, scope: trio.CancelScope | None = None) -> None:
    """Set an event when both attempts run; end the scope in the same moment."""
    await trio.sleep(1)
    event.set()
    if scope is not None:
        scope.cancel()


@pytest.mark.parametrize(
    ("errnos", "code"),
    [
        (("ENETUNREACH", "ECONNREFUSED"), Code.REFUSED),
        (("ECONNREFUSED", "EHOSTUNREACH"), Code.REFUSED),
        (("EHOSTUNREACH", "ETIMEDOUT"), Code.TIMEOUT),
        (("ENETUNREACH", "EHOSTUNREACH"), Code.HOST_UNREACHABLE),
        (("EADDRNOTAVAIL", "EACCES"), Code.NOT_ALLOWED),
        (("EPERM", "ENETUNREACH"), Code.NOT_ALLOWED),
        (("EMFILE", "ENETUNREACH"), Code.RESOURCE),
        (("EAFNOSUPPORT", "EIO"), Code.NET_UNREACHABLE),
        (("EIO", "EIO"), Code.GENERAL),
    ],
)
async def test_the_most_telling_failure_speaks_for_all(
    dials: Callable[..., Dials], errnos: tuple[str, str], code: Code
) -> None:
    resolve_to("10.0.0.1", "10.0.0.2")
    one, two = (getattr(errno, name) for name in errnos)
    dials(h10_0_0_1=one, h10_0_0_2=two)
    with failing_with(code):
        await connect(Address("db.example", 1))


async def test_a_refusal_outweighs_the_silence_of_another_address(
    dials: Callable[..., Dials], autojump_clock: trio.testing.MockClock
) -> None:
    resolve_to("10.0.0.1", "10.0.0.2")
    made = dials(h10_0_0_1=99.0, h10_0_0_2=errno.ECONNREFUSED)
    with failing_with(Code.REFUSED):
        await connect(Address("db.example", 1), deadline_s=3)
    assert trio.current_time() - made.start == pytest.approx(3)


# --- localhost, and so a port alone


@pytest.mark.parametrize("host", LOOPBACKS)
@pytest.mark.parametrize("name", ["localhost", "LocalHost."])
async def test_localhost_is_whichever_loopback_answers_and_asks_nobody(
    host: str, name: str
) -> None:
    names = resolve_to(error=AssertionError("asked"))
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as service:
        port = service.getsockname()[1]
        with await connect(Address(name, port)) as sock:
            assert sock.getpeername()[:2] == (host, port)
    assert not names.asked


async def test_localhost_where_nobody_listens_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as service:
        port = service.getsockname()[1]
    with pytest.raises(LocalStreamError) as caught:
        await connect(Address("localhost", port))
    assert caught.value.code is Code.REFUSED


async def test_a_rule_for_one_loopback_does_not_lead_to_the_other() -> None:
    with (
        socket.create_server(("::1", free_port()), family=socket.AF_INET6) as service,
        socket.socket() as nobody,  # keeps the other one from being somebody else's
    ):
        address = Address("localhost", service.getsockname()[1])
        nobody.bind(("127.0.0.1", address.port))
        for networks, code in (
            ([], Code.NOT_ALLOWED),
            (["10.0.0.0/8"], Code.NOT_ALLOWED),
            (["127.0.0.0/8"], Code.REFUSED),
        ):
            with pytest.raises(LocalStreamError) as caught:
                await connect(address, allow=Networks.parse(networks).allow)
            assert caught.value.code is code
        (await connect(address, allow=Networks.parse(["::1"]).allow)).close()


async def test_a_full_first_loopback_does_not_hide_the_other() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        port = full.getsockname()[1]
        waiting = []
        for _ in range(3):  # one more than fits: the kernel drops what comes now
            sock = socket.socket()
            sock.setblocking(False)
            sock.connect_ex(("127.0.0.1", port))
            waiting.append(sock)
        where = ("::1", port)
        with (
            socket.create_server(where, family=socket.AF_INET6),
            await connect(Address("localhost", port)) as sock,
        ):
            assert sock.getpeername()[:2] == where
        for sock in waiting:
            sock.close()
