"""``tunnel pipe`` and stdout that ends: what stands behind a shell's pipe."""

from __future__ import annotations

import signal
import subprocess
import sys
from hashlib import sha256
from typing import TYPE_CHECKING

import pytest
from support.processes import free_port
from support.targets import END, RESET, Target, flood, read_exactly, visit

from tunnel.errors import Exit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.processes import Machine
    from support.world import World


def pipe(world: World, name: str) -> tuple[str, ...]:
    target = f"127.0.0.1:{world.targets[name].port}"
    to = ("--to", world.server.join)
    return (sys.executable, "-m", "tunnel", "pipe", target, *to)


@pytest.mark.parametrize("size", [0, 1, 3_000_000])
def test_pipe_passes_the_end_of_stdin_on_and_gives_the_whole_answer(
    world: World, machine: Machine, size: int
) -> None:
    payload = bytes(size)
    done = machine.run(*pipe(world, "answer_at_end"), stdin=payload)
    assert (done.returncode, done.stderr.count(b"error")) == (0, 0)
    assert done.stdout == sha256(payload).hexdigest().encode() + bytes(1 << 20)
    assert world.targets["answer_at_end"].next_seen() == END


def test_pipe_carries_both_ways_at_the_same_time(
    world: World, machine: Machine
) -> None:
    payload = bytes(range(256)) * 16_384
    done = machine.run(*pipe(world, "echo"), stdin=payload)
    assert done.returncode == 0
    assert done.stdout == payload


def test_pipe_to_a_target_that_refuses_leaves_no_session_waiting(
    machine: Machine,
) -> None:
    server = machine.serve()
    command = ("pipe", f"127.0.0.1:{free_port()}", "--to", server.join)
    assert machine.tunnel(*command).wait() == Exit.NOT_REACHED
    assert "waiting=false" in server.program.err.wait("link.down")


def test_pipe_works_between_files(world: World, machine: Machine) -> None:
    there, back = machine.home / "there", machine.home / "back"
    there.write_bytes(bytes(range(256)) * 4000)
    with there.open("rb") as source, back.open("wb") as sink:
        done = subprocess.run(
            pipe(world, "echo"),
            stdin=source,
            stdout=sink,
            env=machine.env,
            check=False,
            timeout=60,
        )
    assert done.returncode == 0
    assert back.read_bytes() == there.read_bytes()


def test_pipe_to_a_target_that_resets_does_not_end_with_0(
    world: World, machine: Machine
) -> None:
    done = machine.run(*pipe(world, "reset_midway"), stdin=b"12")
    assert done.returncode != 0
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_pipe_ends_without_a_traceback_when_a_signal_comes(
    world: World, machine: Machine, number: signal.Signals
) -> None:
    running = machine.start(*pipe(world, "watched"), stdin=subprocess.PIPE)
    assert running.process.stdin is not None
    running.process.stdin.write(b"hello\n")
    running.process.stdin.flush()
    running.out.wait("hello")
    status = running.stop(number)
    assert status == 130 if number is signal.SIGINT else status in (0, -number)
    assert "Traceback" not in running.errors()
    assert world.targets["watched"].next_seen() in (END, RESET)


@pytest.fixture
def endless() -> Iterator[Target]:
    with Target(flood) as running:
        yield running


def test_pipe_ends_when_nobody_reads_its_output(
    world: World, machine: Machine, endless: Target
) -> None:
    words = list(pipe(world, "flood"))
    words[words.index(f"127.0.0.1:{world.targets['flood'].port}")] = (
        f"127.0.0.1:{endless.port}"
    )
    running = subprocess.Popen(
        words,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=machine.env,
    )
    with running:
        assert running.stdout is not None
        assert running.stderr is not None
        assert len(running.stdout.read(1000)) == 1000
        running.stdout.close()
        assert endless.next_seen() == RESET
        running.wait(20)
        assert b"Traceback" not in running.stderr.read()


def test_up_goes_on_when_nobody_reads_its_output(
    world: World, machine: Machine
) -> None:
    running = subprocess.Popen(
        [
            *(sys.executable, "-m", "tunnel", "up", "--to", world.server.join),
            *("--tcp", f"0=127.0.0.1:{world.targets['echo'].port}"),
            *("--reach", f"0={world.targets['echo'].port}"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=machine.env,
    )
    with running:
        assert running.stdout is not None
        assert running.stderr is not None
        line = running.stdout.readline().decode()
        running.stdout.close()
        with visit(int(line.split()[1].rpartition(":")[2])) as conn:
            conn.sendall(b"hello")
            assert read_exactly(conn, 5) == b"hello"
        running.send_signal(signal.SIGTERM)
        assert running.wait(20) == 0
        said = running.stderr.read()
    assert b"Traceback" not in said
    assert b"BrokenPipe" not in said
