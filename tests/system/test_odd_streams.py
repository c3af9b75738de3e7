"""A tunnel outlives its terminal, its reader, its disk and its home folder."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from support.processes import Machine, eventually, free_port
from support.targets import Target, read_exactly, visit

if TYPE_CHECKING:
    from support.processes import Program, Server

USER: Final = 12_345
"""No name and no home folder belong to it."""
AS_USER: Final = (
    "setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups",
    # The package may lie where only root can look; nothing more may be written.
    "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search",
)  # fmt: skip
FULL: Final = "mount -t tmpfs -o size=16k none {0} && cat /dev/zero >{0}/filler;"


def in_shell(machine: Machine, how: str, *args: str, **env: str) -> Program:
    """Start a ``tunnel`` command by a shell; ``how`` holds ``"$@"``."""
    return machine.start("sh", "-c", how, "sh", *machine.command, *args, env=env)


def as_user(machine: Machine, *args: str, **env: str) -> Program:
    """Start a ``tunnel`` command as somebody else."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("NOT TESTED: only root can become another user, with setpriv")
    unset = ("env", *(f"-u{name}" for name, value in env.items() if not value))
    return machine.start(*unset, *AS_USER, *machine.command, *args, env=env)


def can_visit(port: int) -> bool:
    try:
        with visit(port) as conn:
            conn.sendall(b"hello")
            return read_exactly(conn, 5) == b"hello"
    except (OSError, AssertionError, EOFError):
        return False


def works(port: int) -> None:
    eventually(lambda: can_visit(port), f"an echo at the public port {port}")


def tcp(server: Server, target: Target, port: int) -> tuple[str, ...]:
    """Give the words that publish ``target`` at ``port``."""
    return "tcp", str(target.port), "--remote", str(port), "--to", server.join


STREAMS: Final = {
    "stdout closed": 'exec "$@" >&-',
    "stderr closed": 'exec "$@" 2>&-',
    "all closed": 'exec "$@" <&- >&- 2>&-',
    "full": 'exec "$@" >/dev/full 2>/dev/full',
    "reader left": '{ exec "$@" 2>&1; } | true',
}


@pytest.mark.parametrize("how", STREAMS.values(), ids=list(STREAMS))
def test_a_server_and_a_client_work_whatever_their_streams_are(
    machine: Machine, target: Target, how: str
) -> None:
    link, public = free_port(), free_port()
    state = machine.home / "server"
    serve = ("serve", "--listen", f"127.0.0.1:{link}", "--state", str(state))
    serving = in_shell(machine, how, *serve)
    join = state / "join"
    eventually(join.exists, "the join line in the state folder")
    line = join.read_text().strip()
    client = in_shell(
        machine, how, "tcp", str(target.port), "--remote", str(public), "--to", line
    )
    works(public)
    if "|" not in how:
        assert client.stop() == 0
        assert serving.stop() == 0


def test_a_terminal_that_went_away_ends_no_tunnel_under_nohup(
    machine: Machine, server: Server, target: Target
) -> None:
    master, slave = pty.openpty()
    port = free_port()
    # A session of its own, whose controlling terminal it is.
    child = subprocess.Popen(
        ("setsid", "--ctty", "sh", "-c", 'trap "" HUP; exec "$@"', "sh",
         *machine.command, *tcp(server, target, port)),
        env=machine.env, stdin=slave, stdout=slave, stderr=slave,
    )  # fmt: skip
    try:
        os.close(slave)
        works(port)
        os.close(master)
        with visit(port) as first:
            first.sendall(b"hello")
            assert read_exactly(first, 5) == b"hello"
            server.program.err.wait("mapping")
            works(port)  # the line of moving numbers was written meanwhile
        child.send_signal(signal.SIGTERM)
        assert child.wait(20) == 0
    finally:
        child.kill()
        child.wait()


def test_sighup_ends_what_reads_no_file_as_sigterm_does(
    machine: Machine, server: Server, target: Target
) -> None:
    port = free_port()
    client = machine.tunnel(*tcp(server, target, port))
    client.out.wait("tcp ")
    assert client.stop(signal.SIGHUP) == 0


def test_sighup_ends_a_server_that_has_a_terminal_and_no_other(
    machine: Machine,
) -> None:
    serving = machine.serve().program
    serving.send(signal.SIGHUP)
    serving.err.wait("event=config.reloaded")
    assert serving.stop() == 0
    _, slave = pty.openpty()
    command = "setsid", "--ctty", "--wait", *machine.command
    told = machine.start(*command, "serve", "--listen", "127.0.0.1:0", stdin=slave)
    told.out.wait("tunnel")
    (child,) = Path(f"/proc/{told.pid}/task/{told.pid}/children").read_text().split()
    os.kill(int(child), signal.SIGHUP)
    assert told.wait() == 0
    assert not told.err.count("config.reloaded")


def test_sighup_that_was_ignored_at_the_start_stays_ignored(
    machine: Machine, server: Server, target: Target
) -> None:
    port = free_port()
    how = 'trap "" HUP; exec "$@"'
    client = in_shell(machine, how, *tcp(server, target, port))
    client.out.wait("tcp ")
    client.send(signal.SIGHUP)
    works(port)
    assert client.stop() == 0


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_output_in_a_poor_character_set_is_escaped_and_json_stays_json(
    machine: Machine, target: Target, encoding: str
) -> None:
    folder = machine.home / "Fotos → ä"
    folder.mkdir()
    env = {"PYTHONIOENCODING": f"{encoding}:strict"}
    server = machine.serve("--http", "127.0.0.1:0")
    share = ("share", str(folder), "--to", server.join)
    plain = machine.tunnel(*share, env=env)
    assert "Fotos ->" in plain.out.wait("http")
    told = machine.tunnel(*share, "--json", env=env)
    assert json.loads(told.out.wait("{"))["target"] == str(folder)


def test_help_is_shown_on_a_terminal_that_knows_only_ascii(machine: Machine) -> None:
    poor = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    for words in ((), ("serve",), ("up",), ("share",)):
        shown = machine.tunnel(*words, "--help", env=poor)
        assert shown.wait() == 0
        lines = shown.out.all()
        assert "--log" in "\n".join(lines) or not words
        boxed = [line for line in lines if line.startswith(("|", "+"))]
        assert {len(line) for line in boxed} == {80}


def test_a_join_line_that_could_not_be_printed_is_a_failure(machine: Machine) -> None:
    machine.serve().program.stop()
    state = str(machine.home / "server")
    how = 'exec "$@" >/dev/full'
    asked = in_shell(machine, how, "serve", "--print-join", "--state", state)
    assert asked.wait() == 3
    assert "was not written" in asked.errors()


def test_a_join_line_from_a_closed_stdin_is_a_wrong_one(machine: Machine) -> None:
    asked = in_shell(machine, 'exec "$@" <&-', "join", "-")
    assert asked.wait() == 2
    assert "Traceback" not in asked.errors()


# Home folders ------------------------------------------------------------------------

HOMES: Final = {
    "of root": {"HOME": "/root"},
    "missing": {"HOME": "/nowhere/at/all"},
    "a file": {"HOME": "/dev/null"},
    "unknown": {"HOME": ""},
}


@pytest.mark.parametrize(
    ("home", "save"),
    [
        *((home, ("--save-as", "work")) for home in HOMES.values()),
        (HOMES["unknown"], ()),
    ],
    ids=[*HOMES, "unknown, not asked to save"],
)
def test_a_client_works_where_it_can_keep_nothing(
    machine: Machine,
    server: Server,
    target: Target,
    home: dict[str, str],
    save: tuple[str, ...],
) -> None:
    del machine.env["XDG_CONFIG_HOME"], machine.env["XDG_STATE_HOME"]
    port = free_port()
    client = as_user(machine, *tcp(server, target, port), *save, **home)
    client.out.wait("tcp ")
    works(port)
    client.err.wait("join.not_saved")
    assert client.stop() == 0


def test_a_server_without_a_home_asks_for_a_folder(machine: Machine) -> None:
    del machine.env["XDG_CONFIG_HOME"], machine.env["XDG_STATE_HOME"]
    serving = as_user(machine, "serve", "--listen", "127.0.0.1:0", HOME="")
    assert serving.wait() == 3
    assert "--state DIR" in serving.errors()


def test_a_client_works_on_a_full_disk(
    machine: Machine, server: Server, target: Target
) -> None:
    disk = machine.home / "disk"
    disk.mkdir()
    allowed = subprocess.run(("unshare", "-m", "true"), check=False).returncode == 0
    if not allowed:
        pytest.skip("NOT TESTED: no mount namespace can be made here")
    port = free_port()
    how = f'{FULL.format(disk)} exec "$@" >{disk}/out 2>{disk}/err'
    client = machine.start(
        "unshare", "-m", "sh", "-c", how, "sh", *machine.command,
        *tcp(server, target, port), "--save-as", "work",
        env={"HOME": str(disk), "XDG_CONFIG_HOME": "", "XDG_STATE_HOME": ""},
    )  # fmt: skip
    works(port)
    assert client.stop() == 0


# Secrets as they are mounted ---------------------------------------------------------


def mounted(folder: Path, name: str, text: str, mode: int) -> Path:
    """Lay a file as Kubernetes does: behind two links, in a folder for everybody."""
    data = folder / "..2026"
    data.mkdir(exist_ok=True)
    (data / name).write_text(text)
    (data / name).chmod(mode)
    for link, where in (("..data", "..2026"), (name, f"..data/{name}")):
        if not (folder / link).is_symlink():
            (folder / link).symlink_to(where)
    data.chmod(0o1777)
    folder.chmod(0o1777)
    return folder / name


@pytest.mark.parametrize("mode", [0o444, 0o440, 0o644])
def test_a_join_file_that_only_root_could_have_written_is_used(
    machine: Machine, server: Server, target: Target, mode: int
) -> None:
    folder = machine.home / "secret"
    folder.mkdir()
    file = mounted(folder, "join", server.join, mode)
    port = free_port()
    words = ("tcp", str(target.port), "--remote", str(port))
    client = as_user(machine, *words, HOME="/nowhere", TUNNEL_TO_FILE=str(file))
    client.out.wait("tcp ")
    works(port)


def test_a_join_file_of_another_user_is_used_by_a_switch_only(
    machine: Machine, server: Server, target: Target
) -> None:
    if os.geteuid() != 0:
        pytest.skip("NOT TESTED: only root can give files away")
    file = machine.home / "join"
    file.write_text(server.join)
    file.chmod(0o600)
    os.chown(file, USER + 1, USER + 1)
    told = {"TUNNEL_TO_FILE": str(file)}
    refused = as_user(machine, "tcp", str(target.port), **told)
    assert refused.wait() == 3
    assert "TUNNEL_TRUST_FILES=yes" in refused.errors()
    trusting = {**told, "TUNNEL_TRUST_FILES": "yes"}
    as_user(machine, "tcp", str(target.port), **trusting).out.wait("tcp ")


def test_a_server_starts_from_a_complete_state_that_it_cannot_write(
    machine: Machine,
) -> None:
    machine.serve().program.stop()
    state, folder = machine.home / "server", machine.home / "mounted"
    folder.mkdir()
    for name in ("join", "identity.pem"):
        mounted(folder, name, (state / name).read_text(), 0o444)
    folder.chmod(0o755)
    words = ("serve", "--listen", f"127.0.0.1:{free_port()}", "--state", str(folder))
    serving = as_user(machine, *words, HOME="/nowhere")
    printed = serving.out.wait("tunnel://")
    kept = (state / "join").read_text().split("@")[0]
    assert printed.split("@")[0] == kept
    assert serving.stop() == 0


def test_a_pipe_to_a_full_disk_ends_with_words_and_no_traceback(
    machine: Machine, server: Server, target: Target
) -> None:
    how = '{ echo hello; cat; } | "$@" >/dev/full'
    words = ("pipe", f"127.0.0.1:{target.port}", "--to", server.join)
    piping = machine.start(
        "sh", "-c", how, "sh", *machine.command, *words, stdin=subprocess.DEVNULL
    )
    assert piping.wait() != 0
    assert "cannot write to stdout" in piping.errors()
    assert "Traceback" not in piping.errors()
