"""gRPC by name: a real server and a real client of it, around a real link."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc
import pytest
import trio
import trustme
from support.center import LOOPBACK, center, running

from tunnel.addresses import Address
from tunnel.center.events import MappingReady
from tunnel.center.names import NameOptions
from tunnel.ops.entry_syntax import parse_http

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

NAME = "rpc.t.test"
LARGE = 5 * 1024 * 1024
PATIENCE_S = 30


class Service:
    """Messages are bytes; the method says what is done with them."""

    def __init__(self) -> None:
        self.cancelled = threading.Event()
        self.began = threading.Event()

    def handler(self) -> grpc.GenericRpcHandler:
        kinds = {
            "unary": grpc.unary_unary_rpc_method_handler,
            "fails": grpc.unary_unary_rpc_method_handler,
            "up": grpc.stream_unary_rpc_method_handler,
            "down": grpc.unary_stream_rpc_method_handler,
            "waits": grpc.unary_stream_rpc_method_handler,
            "both": grpc.stream_stream_rpc_method_handler,
        }
        made = {kind: make(getattr(self, kind)) for kind, make in kinds.items()}
        return grpc.method_handlers_generic_handler("a.Test", made)

    def unary(self, said: bytes, call: grpc.ServicerContext) -> bytes:
        sent = dict(call.invocation_metadata())
        call.send_initial_metadata((("x-first", sent.get("x-asked", "")),))
        call.set_trailing_metadata((("x-last-bin", b"\0\1"), ("x-last", "ok")))
        return said

    def fails(self, said: bytes, call: grpc.ServicerContext) -> bytes:
        call.abort(grpc.StatusCode.DATA_LOSS, said.decode())
        return b""

    def up(self, said: Iterator[bytes], call: grpc.ServicerContext) -> bytes:
        return b"%d" % sum(map(len, said))

    def down(self, said: bytes, call: grpc.ServicerContext) -> Iterator[bytes]:
        for number in range(int(said)):
            yield b"%d" % number

    def both(
        self, said: Iterator[bytes], call: grpc.ServicerContext
    ) -> Iterator[bytes]:
        for piece in said:
            yield piece.upper()

    def waits(self, said: bytes, call: grpc.ServicerContext) -> Iterator[bytes]:
        call.add_callback(self.cancelled.set)
        yield said
        self.began.set()
        self.cancelled.wait(PATIENCE_S)


OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.enable_http_proxy", 0),
           ("grpc.default_authority", NAME)]  # fmt: skip


class World:
    """A channel to a service, through a published name."""

    def __init__(self, channel: grpc.Channel, service: Service) -> None:
        self.service = service
        self._channel = channel

    def call(self, kind: str, name: str) -> Any:  # noqa: ANN401
        return getattr(self._channel, kind)(f"/a.Test/{name}")


@asynccontextmanager
async def world(tmp_path: Path, *, tls: bool, words: str = "") -> AsyncIterator[World]:
    authority = trustme.CA()
    names = NameOptions(http=Address(LOOPBACK, 0), domain="t.test")
    if tls:
        pair = tmp_path / "chain.pem", tmp_path / "key.pem"
        issued = authority.issue_cert(NAME)
        pair[0].write_bytes(b"".join(one.bytes() for one in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(pair[1])
        names = NameOptions(https=Address(LOOPBACK, 0), domain="t.test",
                            certificate=pair)  # fmt: skip
    service = Service()
    server = grpc.server(
        ThreadPoolExecutor(64), [service.handler()], options=OPTIONS[:1]
    )
    port = server.add_insecure_port(f"{LOOPBACK}:0")
    server.start()
    try:
        async with center(names=names) as where:
            client, notices = where.client()
            entry = parse_http(f"rpc={LOOPBACK}:{port},protocol=h2c{words}")
            await entry.start(client)
            async with running(client):
                await notices.next(MappingReady)
                at = where.server.names.https if tls else where.server.names.http
                if tls:
                    credentials = grpc.ssl_channel_credentials(
                        authority.cert_pem.bytes()
                    )
                    channel = grpc.secure_channel(str(at), credentials, OPTIONS)
                else:
                    channel = grpc.insecure_channel(str(at), OPTIONS)
                with channel:
                    yield World(channel, service)
    finally:
        server.stop(None).wait(PATIENCE_S)


async def in_thread(do: Callable[[], Any]) -> Any:  # noqa: ANN401
    return await trio.to_thread.run_sync(do, abandon_on_cancel=True)


def unary(it: World) -> None:
    call = it.call("unary_unary", "unary")
    asked = (("x-asked", "yes"),)
    answer, state = call.with_call(b"hello", metadata=asked, timeout=PATIENCE_S)
    assert answer == b"hello"
    assert ("x-first", "yes") in state.initial_metadata()
    assert {("x-last-bin", b"\0\1"), ("x-last", "ok")} <= set(state.trailing_metadata())


def fails(it: World) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        it.call("unary_unary", "fails")(b"it is gone", timeout=PATIENCE_S)
    assert caught.value.code() is grpc.StatusCode.DATA_LOSS
    assert caught.value.details() == "it is gone"


def large(it: World) -> None:
    said = bytes(range(256)) * (LARGE // 256)
    assert it.call("unary_unary", "unary")(said, timeout=PATIENCE_S) == said


def up(it: World) -> None:
    said = (bytes(1000) for _ in range(1000))
    assert it.call("stream_unary", "up")(said, timeout=PATIENCE_S) == b"1000000"


def down(it: World) -> None:
    heard = list(it.call("unary_stream", "down")(b"1000", timeout=PATIENCE_S))
    assert heard == [b"%d" % number for number in range(1000)]


def both(it: World) -> None:
    """Each is said only when the one before was answered."""
    heard: list[bytes] = []
    go_on = threading.Semaphore(1)

    def say() -> Iterator[bytes]:
        for number in range(100):
            go_on.acquire()
            yield b"a%d" % number

    for answer in it.call("stream_stream", "both")(say(), timeout=PATIENCE_S):
        heard.append(answer)
        go_on.release()
    assert heard == [b"A%d" % number for number in range(100)]


def cancelled(it: World) -> None:
    call = it.call("unary_stream", "waits")(b"x", timeout=PATIENCE_S)
    assert next(call) == b"x"
    assert it.service.began.wait(PATIENCE_S)
    assert not it.service.cancelled.is_set()
    call.cancel()
    assert it.service.cancelled.wait(PATIENCE_S)


def late(it: World) -> None:
    call = it.call("unary_stream", "waits")(b"x", timeout=0.5)
    assert next(call) == b"x"
    with pytest.raises(grpc.RpcError) as caught:
        next(call)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert it.service.cancelled.wait(PATIENCE_S)


def many(it: World) -> None:
    """More at once than there are lanes, and none of them ends."""
    calls = [it.call("stream_stream", "both") for _ in range(40)]
    done = threading.Event()

    def say() -> Iterator[bytes]:
        yield b"x"
        done.wait(PATIENCE_S)

    under_way = [call(say(), timeout=PATIENCE_S) for call in calls]
    assert [next(call) for call in under_way] == [b"X"] * 40
    done.set()
    assert [list(call) for call in under_way] == [[]] * 40


@pytest.mark.parametrize("tls", [False, True], ids=["prior", "tls"])
async def test_all_kinds_of_calls_pass_by_name(tls: bool, tmp_path: Path) -> None:
    with trio.fail_after(PATIENCE_S * 4):
        async with world(tmp_path, tls=tls) as it:
            for kind in (unary, fails, large, up, down, both, many, cancelled):
                it.service.cancelled.clear()
                it.service.began.clear()
                await in_thread(partial(kind, it))


async def test_a_deadline_reaches_the_target(tmp_path: Path) -> None:
    with trio.fail_after(PATIENCE_S):
        async with world(tmp_path, tls=False) as it:
            await in_thread(partial(late, it))


async def test_a_call_without_the_password_is_unauthenticated(tmp_path: Path) -> None:
    with trio.fail_after(PATIENCE_S):
        async with world(tmp_path, tls=False, words=",auth=me:secret") as it:
            call = it.call("unary_unary", "unary")

            def ask() -> grpc.StatusCode:
                with pytest.raises(grpc.RpcError) as caught:
                    call(b"x", timeout=PATIENCE_S)
                code: grpc.StatusCode = caught.value.code()
                return code

            assert await in_thread(ask) is grpc.StatusCode.UNAUTHENTICATED
            login = (("authorization", "Basic bWU6c2VjcmV0"),)
            right = partial(call, b"x", metadata=login, timeout=PATIENCE_S)
            assert await in_thread(right) == b"x"
