"""What a command line or a variable carries is shown to nobody, nor to other users."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from support.processes import free_port, program
from support.targets import Target, echo

from tunnel.access.join import parse_join

if TYPE_CHECKING:
    from support.processes import Machine

TOKEN: Final = "k7QeAbcdefghijklmnopqrstuvwxyz0123456789ABCDE"[:43]
PIN: Final = "B" * 42 + "I"
WORD: Final = "hunter2pass"
LINE: Final = f"tunnel://default:{TOKEN}@127.0.0.1:9/#{PIN}"
DAMAGED: Final = LINE.replace(TOKEN, TOKEN[:-5] + "!")
AUTH: Final = f"me:{WORD}"
VIA: Final = f"http://me:{WORD}@127.0.0.1:9"

WRONG: Final = [
    ["up", "--too", LINE, "--tcp", "8000"],
    ["up", f"--too={LINE}", "--tcp", "8000"],
    [LINE],
    ["joins", LINE],
    ["tcp", "8000", LINE],
    ["tcp", LINE],
    ["tcp", "8000", "--remote", LINE],
    ["udp", LINE],
    ["share", LINE],
    ["share", "8000", "--name", LINE, "--to", "x y"],
    ["reach", LINE, "1"],
    ["reach", "1", LINE],
    ["socks", LINE],
    ["pipe", LINE],
    ["up", "--reach", LINE],
    ["up", "--socks", LINE],
    ["up", "--tcp", "8000", "--save-as", LINE, "--to", "no"],
    ["serve", "--listen", LINE],
    ["serve", "--ports", LINE],
    ["serve", "--resume", LINE],
    ["serve", "--log", LINE],
    ["serve", "--http", LINE],
    ["serve", LINE],
    ["join", DAMAGED],
    ["tcp", "8000", "--to", DAMAGED],
    ["join", f"'{LINE}'"],
    ["join", f'"{LINE}"', "--save", "x"],
    ["join", LINE.partition("@")[0], "@127.0.0.1:9"],
    ["join", "tunnel://default:", f"{TOKEN}@127.0.0.1:9"],
    ["tcp", "8000", "--to", TOKEN],
    ["tcp", "8000", "--to", f"default:{TOKEN}@127.0.0.1:9"],
    ["join", LINE.replace("tunnel://", "tunnel:/")],
    ["join", LINE.replace("tunnel://", "tunel://")],
    ["join", LINE, "--save-as", LINE],
    ["demo", LINE],
    ["share", "8000", AUTH],
    ["share", "8000", "--auht", AUTH],
    ["share", "8000", f"--auth={AUTH}", "--nome"],
    ["share", "8000", "--auth", "me:", WORD],
    ["socks", "1080", "--auth", AUTH, "--to", "no"],
    ["socks", AUTH],
    ["up", "--socks", f"nowhere,auth={AUTH}"],
    ["up", "--socks", f"1080,auth={AUTH},x=1"],
    ["up", "--auth", AUTH],
    ["tcp", "--socks", "--auth", AUTH, "--network", AUTH],
    ["tcp", "8000", "--via", f"{VIA}/path"],
    ["tcp", "8000", "--vai", VIA],
    ["tcp", VIA],
    ["tcp", "8000", "--via", VIA, "--to", LINE, "--no"],
]
VARIABLES: Final = [
    {"TUNNEL_TO": DAMAGED},
    {"TUNNEL_TO": TOKEN},
    {"TUNNEL_TO_FILE": LINE},
    {"TUNNEL_REMOTE": LINE},
    {"TUNNEL_LOG": LINE},
    {"TUNNEL_VIA": VIA + "/path"},
    {"TUNNEL_VIA_FILE": VIA},
    {"TUNNEL_PROXY_PROTOCOL": AUTH},
    {"TUNNEL_JSON": AUTH},
]


def run(machine: Machine, *args: str, **env: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "tunnel", *args],
        env=machine.env | env,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        timeout=30,
        check=False,
    )
    return done.returncode, (done.stdout + done.stderr).decode()


def no_secret(said: str) -> None:
    joined = "".join(said.split())
    assert TOKEN[:20] not in joined, said
    assert WORD not in joined, said
    assert "Traceback" not in said


FORKS: Final = """
import json, os, sys
import tunnel.ops.cli, tunnel.ops.serve, tunnel.ops.up, tunnel.ops.pipe
import tunnel.ops.entry_syntax

for args, variables in json.loads(sys.stdin.read()):
    out = os.memfd_create("out")
    if not (child := os.fork()):
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.argv[1:] = args
        os.environ.update(variables)
        tunnel.ops.cli.main()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.lseek(out, 0, 0)
    said = os.read(out, 1 << 20).decode()
    os.close(out)
    print(json.dumps([status, said]), flush=True)
"""
"""Runs many command lines, each in a process of its own that has all loaded."""


@pytest.mark.parametrize("step", [3, pytest.param(1, marks=pytest.mark.deep)])
def test_no_wrong_command_line_or_variable_shows_a_secret(
    machine: Machine, step: int
) -> None:
    given: list[tuple[list[str], dict[str, str]]]
    given = [(args, {}) for args in WRONG[::step]]
    given += [(["tcp", "8000"], variables) for variables in VARIABLES]
    done = machine.run(sys.executable, "-c", FORKS, stdin=json.dumps(given).encode())
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(results) == len(given), done.stderr
    for case, (status, said) in zip(given, results, strict=True):
        assert status in (2, 3, 4), (case, said)
        assert said
        no_secret(said)


def test_a_wrong_command_line_that_runs_twice_shows_no_secret(machine: Machine) -> None:
    status, said = run(machine, "tcp", "8000", "--too", LINE, "--auth", AUTH)
    assert status == 2
    no_secret(said)


# The argument list -----------------------------------------------------------------


def test_other_users_see_no_secret_in_the_argument_list(machine: Machine) -> None:
    nowhere = LINE.replace(":9/", f":{free_port()}/")
    up = machine.tunnel(
        *("up", "--to", nowhere, "--via", VIA, "--socks", f"127.0.0.1:0,auth={AUTH}")
    )
    up.err.wait("link.not_made")
    words = Path(f"/proc/{up.pid}/cmdline").read_text().split("\0")
    hidden = nowhere.replace(TOKEN, "***")
    assert words[1:6] == ["-m", "tunnel", "up", "--to", hidden]
    assert "127.0.0.1:0,auth=me:***" in words
    no_secret("".join(words) + Path(f"/proc/{up.pid}/environ").read_text())
    open_files = [os.readlink(fd) for fd in Path(f"/proc/{up.pid}/fd").iterdir()]
    assert not [name for name in open_files if "memfd" in name]
    assert up.stop() == 0
    no_secret(up.errors())


def test_a_program_of_that_name_keeps_it(machine: Machine) -> None:
    script = machine.home / "tunnel"
    script.write_text(f"#!{sys.executable}\nfrom tunnel.__main__ import main\nmain()\n")
    script.chmod(0o755)
    nowhere = LINE.replace(":9/", f":{free_port()}/")
    up = machine.start(str(script), "tcp", "8000", "--to", nowhere)
    up.err.wait("link.not_made")
    assert Path(f"/proc/{up.pid}/comm").read_text() == "tunnel\n"
    assert TOKEN not in Path(f"/proc/{up.pid}/cmdline").read_text()
    assert up.stop() == 0


HEADER: Final = f"+X-Api-Key:{WORD}"
SERVICE: Final = f"shop=8000,auth={AUTH},header=+Authorization:{WORD}"
OTHERS: Final = [
    ("share", "8000", "--auth", AUTH, "--header", HEADER),
    ("share", "8000", f"--auth={AUTH}", f"--header={HEADER}", f"--via={VIA}"),
    ("up", "--http", SERVICE, "--socks", f"127.0.0.1:0,auth={AUTH},auth=you:{WORD}"),
    ("tcp", "--socks", "--auth", AUTH, "--auth", f"you:{WORD}", "--via", VIA),
]


@pytest.mark.parametrize("words", OTHERS)
def test_no_flag_that_takes_a_secret_shows_it(
    machine: Machine, words: tuple[str, ...]
) -> None:
    nowhere = LINE.replace(":9/", f":{free_port()}/")
    up = machine.tunnel(*words, "--to", nowhere)
    up.err.wait("link.not_made")
    seen = Path(f"/proc/{up.pid}/cmdline").read_text()
    assert "***" in seen
    no_secret(seen + Path(f"/proc/{up.pid}/environ").read_text() + up.errors())


CONSOLE: Final = Path(sys.executable).with_name("tunnel")
NO_MEMORY: Final = """
import os
del os.memfd_create
from tunnel.__main__ import main
main()
"""
COMMANDS: Final = {
    "module": [sys.executable, "-m", "tunnel"],
    "console script": [str(CONSOLE)],
    "without files in memory": [sys.executable, "-c", NO_MEMORY],
}


@pytest.mark.parametrize("how", COMMANDS)
def test_a_program_that_hides_its_line_keeps_stdin_status_and_signals(
    machine: Machine, how: str
) -> None:
    if how == "console script" and not CONSOLE.exists():
        pytest.skip("NOT TESTED: tunnel is not installed as a command")
    server = machine.serve()
    token = parse_join(server.join).token.reveal()
    other = f"{LINE.partition('@')[0]}@{server.join.partition('@')[2]}"
    # It hears so after a second.
    refused = machine.start(*COMMANDS[how], "up", "--reach", "0=1", "--to", other)
    with Target(echo) as target:
        there = f"127.0.0.1:{target.port}"
        to = ("--to", server.join)
        pipe = machine.start(
            *COMMANDS[how], "pipe", there, *to, stdin=subprocess.PIPE
        )  # fmt: skip
        assert pipe.process.stdin is not None
        pipe.process.stdin.write(b"through stdin\n")
        pipe.process.stdin.flush()
        pipe.out.wait("through stdin")
        assert token not in Path(f"/proc/{pipe.pid}/cmdline").read_text()
        pipe.process.stdin.close()
        assert pipe.wait() == 0
        up = machine.start(*COMMANDS[how], "up", "--reach", f"0={there}", *to)
        up.out.wait("reach")
        assert token not in Path(f"/proc/{up.pid}/cmdline").read_text()
        assert up.stop(signal.SIGINT) == 130
    assert refused.wait() == 6


def test_where_nothing_can_be_hidden_that_is_said_once(machine: Machine) -> None:
    code = (
        "import errno, os, tunnel.ops.hide as hide\n"
        "def inherited(_): raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))\n"
        "hide.inherited = inherited\n"
        "from tunnel.__main__ import main\nmain()"
    )
    nowhere = LINE.replace(":9/", f":{free_port()}/")
    up = machine.start(sys.executable, "-c", code, "tcp", "8000", "--to", nowhere)
    up.err.wait("link.not_made")
    assert up.err.count("warning: other users of this machine see the secrets") == 1
    assert up.err.count("TUNNEL_TO_FILE") == 1
    assert up.stop() == 0
    no_secret(up.errors())


def test_words_that_came_by_another_way_are_no_matter(machine: Machine) -> None:
    code = (
        "import sys\n"
        "sys.argv[1:] = ['join', sys.stdin.readline().strip()]\n"
        "from tunnel.__main__ import main\nmain()"
    )
    done = machine.run(sys.executable, "-c", code, stdin=LINE.encode())
    assert done.returncode == 0
    assert b"warning" not in done.stderr


def test_children_have_no_secret_in_their_environment(machine: Machine) -> None:
    env = {"TUNNEL_TO": LINE, "TUNNEL_VIA": VIA, "HTTPS_PROXY": VIA}
    demo = machine.tunnel("demo", env=env)
    demo.out.wait("public port")
    threads = Path(f"/proc/{demo.pid}/task").glob("*/children")
    tasks = " ".join(path.read_text() for path in threads).split()
    assert len(tasks) == 2
    for child in tasks:
        for kind in ("environ", "cmdline"):
            seen = Path(f"/proc/{child}/{kind}").read_text()
            no_secret(seen)
            assert "tunnel://" not in seen
    demo.stop()


@pytest.mark.parametrize("number", ["0", "77", "x"])
def test_a_descriptor_of_somebody_else_is_not_believed(
    machine: Machine, number: str
) -> None:
    status, said = run(machine, "join", DAMAGED, _TUNNEL_ARGUMENTS=number)
    assert status == 2
    no_secret(said)


# The journal -----------------------------------------------------------------------


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_the_journal_does_not_get_the_join_line(
    machine: Machine, options: tuple[str, ...]
) -> None:
    state = str(machine.home / "server")
    command = [sys.executable, "-m", "tunnel", "serve", "--state", state]
    script = (
        'exec 3>&1; export JOURNAL_STREAM="$(stat -L -c %d:%i /proc/self/fd/3)"; '
        'exec 3>&- "$@"'
    )
    sh = ["/bin/sh", "-c", script, "sh"]
    serve = machine.start(*sh, *command, "--listen", "127.0.0.1:0", *options)
    first = serve.out.wait("listening")
    assert serve.out.all() == [first]
    port = int(first.rstrip('"}').rpartition(":")[2])
    assert port
    status, said = run(machine, "serve", "--print-join", "--state", state, *options)
    line = json.loads(said)["join"] if options else said.strip()
    assert status == 0
    assert line.startswith("tunnel://default:")
    assert f":{port}/#" in line
    serve.stop()
    assert line.partition("@")[0][17:] not in "".join(serve.out.all()) + serve.errors()


def test_a_line_that_is_not_there_yet_cannot_be_printed(machine: Machine) -> None:
    state = str(machine.home / "server")
    status, said = run(machine, "serve", "--print-join", "--state", state)
    assert status == 3
    assert "fix    tunnel serve" in said
    assert not Path(state).exists()


# Folders and files -----------------------------------------------------------------


@pytest.mark.parametrize("umask", ["0000", "0777"])
def test_folders_and_files_are_private_whatever_the_umask_is(
    machine: Machine, umask: str
) -> None:
    sh = ["/bin/sh", "-c", f'umask {umask}; exec "$@"', "sh"]
    if os.geteuid() == 0:  # may read a folder of mode 000, but for this
        setpriv = program("setpriv")
        sh = [setpriv, "--inh-caps=-all", "--bounding-set=-all", *sh]
    tunnel = [*sh, sys.executable, "-m", "tunnel"]
    state = machine.home / "deep" / "er" / "server"
    listen = ("--listen", "127.0.0.1:0")
    serve = machine.start(*tunnel, "serve", "--state", str(state), *listen)
    line = serve.out.wait("tunnel://")
    up = machine.start(*tunnel, "up", "--to", line, "--socks", "127.0.0.1:0")
    up.out.wait("socks")
    up.stop()
    serve.stop()
    made = [path for path in machine.home.rglob("*") if "__pycache__" not in str(path)]
    assert {path.name for path in made} >= {"join", "identity.pem", "1.id", "er"}
    for path in made:
        wanted = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == wanted, path
