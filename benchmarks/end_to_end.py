"""How fast is the whole chain, beside OpenSSH and beside no tunnel at all?

Question: what do a visitor's bytes, requests and connections cost on their way load
program -> front end -> link -> exit -> target, in ratios that hold on any machine?

Method: `load.c` is compiled on the spot; one target serves all peers. Each load runs
through every peer in turn, then comes the next load, for N rounds that begin with
another peer each time; the processes of the peers that are not measured are stopped
(SIGSTOP) meanwhile. A ratio is the median of the rounds' ratios, so a machine that gets
slower in the middle does not bend it. OpenSSH is its own sshd on a loopback port with
`ssh -N -R`, aes256-gcm, no compression. A failed load is shown and not tried again.
"CPU, s/GB" is user and system time of all processes of the peer during `get ×1` and
`put ×1`, the load program and the target not counted; "idle CPU" is measured once.
The echo under load runs beside four endless `get` streams through the same peer.

Command: python benchmarks/end_to_end.py [--rounds N] [--quick] [--json FILE]
                                         [--only tunnel,openssh,direct] [--plain]
Exit status: 0, or 1 when a peer did not start or a load failed. A peer that is not
installed is left out, loudly.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import getpass
import json
import os
import platform
import select
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HERE: Final = Path(__file__).resolve().parent
READY_S: Final = 10.0
STOP_S: Final = 5.0
IDLE_S: Final = 3.0
SETTLE_S: Final = 0.5
ENDLESS_BYTES: Final = 10**12
TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")


class BenchError(Exception):
    """A peer did not start, or a load did not end well; the text says which."""


class NotInstalled(BenchError):
    """A program that the peer needs is not on this machine."""


# What is measured


@dataclasses.dataclass(frozen=True)
class Floor:
    """What is asked: at least (or at most) ``factor`` times the figure of ``base``."""

    factor: float
    base: str
    at_most: bool = False

    def __str__(self) -> str:
        return f"{'≤' if self.at_most else '≥'} {self.factor:g} × {self.base}"

    def met(self, ratio: float) -> bool:
        return ratio <= self.factor if self.at_most else ratio >= self.factor


OPENSSH: Final = "openssh"
DIRECT: Final = "direct"
TUNNEL: Final = "tunnel"

FIGURES: Final[dict[str, Floor | None]] = {
    "get ×1, MB/s": Floor(0.6, OPENSSH),
    "get ×8, MB/s": Floor(0.5, OPENSSH),
    "put ×1, MB/s": Floor(0.6, OPENSSH),
    "echo p50, µs": Floor(2.2, OPENSSH, at_most=True),
    "echo p99, µs": None,
    "rr 64, /s": Floor(0.4, OPENSSH),
    "cps 32, /s": Floor(0.3, DIRECT),
    "echo p50 loaded, µs": None,
    "echo p99 loaded, µs": Floor(1.5, OPENSSH, at_most=True),
    "CPU get, s/GB": None,
    "CPU put, s/GB": None,
    "idle CPU, %": None,
}


@dataclasses.dataclass(frozen=True)
class Size:
    """How much of each load one turn is."""

    bulk_bytes: int
    seconds: int
    timeout_s: float


FULL: Final = Size(bulk_bytes=1_000_000_000, seconds=3, timeout_s=60.0)
QUICK: Final = Size(bulk_bytes=250_000_000, seconds=1, timeout_s=10.0)


# Processes


def tree(root: int) -> list[int]:
    """Return ``root`` and its descendants; sshd's are not in its process group."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (stat := process_stat(int(entry.name))):
            children.setdefault(int(stat[1]), []).append(int(entry.name))
    found = [root]
    for pid in found:  # grows while it is walked
        found.extend(children.get(pid, []))
    return found


def process_stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the state on; none when it has gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return text.rpartition(")")[2].split()


def alive(pid: int) -> bool:
    stat = process_stat(pid)
    return bool(stat) and stat[0] != "Z"


def send_signal(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def cpu_seconds(pids: list[int]) -> float:
    stats = filter(None, map(process_stat, pids))
    return sum(int(stat[11]) + int(stat[12]) for stat in stats) / TICKS_PER_S


def remaining(deadline: float) -> float:
    return deadline - time.monotonic()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def answers(port: int) -> bool:
    """Tell whether an echo comes back through ``port``."""
    with (
        contextlib.suppress(OSError),
        socket.create_connection(("127.0.0.1", port), 2.0) as visitor,
    ):
        visitor.settimeout(2.0)
        visitor.sendall(b"E?")
        return visitor.recv(1) == b"?"
    return False


@dataclasses.dataclass(frozen=True)
class Program:
    """A running program; what it says on stderr is in the file ``log``."""

    process: subprocess.Popen[bytes]
    log: Path

    def first_line(self) -> str:
        """Wait for the first line on stdout, or raise with the end of the log."""
        assert self.process.stdout is not None
        line, deadline = b"", time.monotonic() + READY_S
        while not line.endswith(b"\n"):
            wait_s = max(0.0, remaining(deadline))
            ready, _, _ = select.select([self.process.stdout], [], [], wait_s)
            byte = os.read(self.process.stdout.fileno(), 1) if ready else b""
            if not byte:
                raise BenchError(f"no line on stdout from {self}")
            line += byte
        return line.decode().strip()

    def end(self, timeout_s: float) -> None:
        """Wait for the end, which was asked for already; insist after ``timeout_s``."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout_s)
        self.process.kill()
        self.process.wait()
        if self.process.stdout:
            self.process.stdout.close()

    def __str__(self) -> str:
        last = self.log.read_text(errors="replace").strip().splitlines()[-4:]
        return f"{self.log.stem}: {' | '.join(last) or 'it said nothing'}"


# Peers


class Peer:
    """One way from a visitor's port to the target.

    ``port`` is where visitors go, valid after ``start``. A subclass makes its processes
    with ``run``; ``stop`` ends them all, and may be called after a failed ``start``.
    """

    name = ""
    label = ""

    def __init__(self, target_port: int, directory: Path) -> None:
        self.target_port = target_port
        self.directory = directory
        self.port = 0
        self._programs: list[Program] = []

    def start(self) -> None:
        raise NotImplementedError

    def stop(self) -> None:
        pids = self.pids()
        send_signal(pids, signal.SIGCONT)
        send_signal(pids, signal.SIGTERM)
        deadline = time.monotonic() + STOP_S
        for program in self._programs:
            program.end(max(0.0, remaining(deadline)))
        send_signal([pid for pid in pids if alive(pid)], signal.SIGKILL)
        self._programs.clear()

    def pids(self) -> list[int]:
        roots = [program.process for program in self._programs]
        return [pid for root in roots if root.poll() is None for pid in tree(root.pid)]

    def pause(self) -> None:
        send_signal(self.pids(), signal.SIGSTOP)

    def resume(self) -> None:
        """Let it run again; return when it carries bytes again."""
        send_signal(self.pids(), signal.SIGCONT)
        self.wait_ready()

    def wait_ready(self) -> None:
        deadline = time.monotonic() + READY_S
        while not answers(self.port):
            for program in self._programs:
                if program.process.poll() is not None:
                    raise BenchError(f"ended by itself, {program}")
            if remaining(deadline) < 0:
                said = "; ".join(map(str, self._programs))
                raise BenchError(f"no echo within {READY_S:g} s; {said}")
            time.sleep(0.05)

    def run(self, name: str, *command: str, **environment: str) -> Program:
        log = self.directory / f"{name}.log"
        with log.open("wb") as errors:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=HERE.parent,
                env=clean_environment() | environment,
                start_new_session=True,
            )
        program = Program(process, log)
        self._programs.append(program)
        return program


def clean_environment() -> dict[str, str]:
    """Return our environment without the options of a tunnel in daily use."""
    return {k: v for k, v in os.environ.items() if not k.startswith("TUNNEL_")}


class Direct(Peer):
    """No tunnel at all: what the load program and the target can do."""

    name = DIRECT
    label = "no tunnel at all"

    def start(self) -> None:
        self.port = self.target_port


class OpenSSH(Peer):
    """``ssh -R`` to an sshd of our own, with keys made for this run."""

    name = OPENSSH
    label = "OpenSSH -R"
    # sshd refuses to start as root without it, and its place is compiled in
    privilege_directory = Path("/run/sshd")

    def start(self) -> None:
        sshd = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
        ssh, keygen = shutil.which("ssh"), shutil.which("ssh-keygen")
        if not (sshd and ssh and keygen):
            raise NotInstalled("ssh, sshd or ssh-keygen is not installed")
        host, user = self._key(keygen, "host"), self._key(keygen, "user")
        link_port, self.port = free_port(), free_port()
        self.run("sshd", sshd, "-D", "-e", "-f", str(self._server_config(link_port)))
        known = self.directory / "known_hosts"
        public = host.with_suffix(".pub").read_text()
        known.write_text(f"[127.0.0.1]:{link_port} {public}")
        options = {
            "Compression": "no",
            "BatchMode": "yes",
            "IdentitiesOnly": "yes",
            "IdentityAgent": "none",
            "ControlPath": "none",
            "ExitOnForwardFailure": "yes",
            "ConnectionAttempts": "20",
            "StrictHostKeyChecking": "yes",
            "UserKnownHostsFile": str(known),
        }
        flags = [flag for key in options for flag in ("-o", f"{key}={options[key]}")]
        flags += ["-F", "none", "-i", str(user), "-p", str(link_port)]
        forward = f"127.0.0.1:{self.port}:127.0.0.1:{self.target_port}"
        cipher = ("-c", "aes256-gcm@openssh.com")
        login = f"{getpass.getuser()}@127.0.0.1"
        self.run("ssh", ssh, "-N", "-R", forward, *cipher, *flags, login)
        self.wait_ready()

    def stop(self) -> None:
        super().stop()
        if (self.directory / "made_privilege_directory").exists():
            with contextlib.suppress(OSError):
                self.privilege_directory.rmdir()

    def _key(self, keygen: str, name: str) -> Path:
        path = self.directory / f"{name}_key"
        command = [keygen, "-q", "-t", "ed25519", "-N", "", "-f", str(path)]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
        return path

    def _server_config(self, port: int) -> Path:
        if os.geteuid() == 0 and not self.privilege_directory.exists():
            self.privilege_directory.mkdir(mode=0o755)
            (self.directory / "made_privilege_directory").touch()
        path = self.directory / "sshd_config"
        path.write_text(
            f"ListenAddress 127.0.0.1\nPort {port}\nPidFile none\n"
            f"HostKey {self.directory}/host_key\n"
            f"AuthorizedKeysFile {self.directory}/user_key.pub\n"
            "UsePAM no\nStrictModes no\nPasswordAuthentication no\n"
            "PermitRootLogin prohibit-password\nCompression no\n"
            "AllowTcpForwarding yes\nGatewayPorts no\n"
        )
        return path


class Tunnel(Peer):
    """``tunnel serve`` and ``tunnel up --tcp``, default options."""

    name = TUNNEL
    label = "tunnel"
    serve_options: tuple[str, ...] = ()

    def start(self) -> None:
        link_port, self.port = free_port(), free_port()
        server = self._tunnel(
            "serve",
            *("--listen", f"127.0.0.1:{link_port}"),
            *("--ports", f"{self.port}-{self.port}"),
            *("--state", str(self.directory / "state")),
            *self.serve_options,
        )
        join = server.first_line()
        entry = f"{self.port}=127.0.0.1:{self.target_port}"
        client = self._tunnel("up", "--to", join, "--tcp", entry)
        ready = client.first_line().split()
        if ready[:1] != ["tcp"]:
            raise BenchError(f"`tunnel up` said {' '.join(ready)!r}")
        self.wait_ready()

    def _tunnel(self, verb: str, *arguments: str) -> Program:
        # what a first `up` saves must not become the person's default
        places = ("XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_DATA_HOME")
        home = dict.fromkeys(places, str(self.directory))
        command = (sys.executable, "-m", "tunnel", verb, *arguments)
        return self.run(f"tunnel-{verb}", *command, **home)


class PlainTunnel(Tunnel):
    """The same without TLS; the floors are asked of TLS, so they are only shown."""

    label = "tunnel --plain"
    serve_options: tuple[str, ...] = ("--plain",)


# Loads


class Loads:
    """The load program of ``load.c``: its target, and one method for each load.

    A method runs its load through ``peer`` and returns what it found, by figure.
    """

    def __init__(self, directory: Path, size: Size) -> None:
        self.size = size
        self._binary = str(directory / "load")
        self._directory = directory

    @contextlib.contextmanager
    def target(self) -> Iterator[int]:
        """Compile, start the target, and yield its port."""
        compiler = shutil.which("cc")
        if not compiler:
            raise NotInstalled("no C compiler: cc is not installed")
        source = str(HERE / "load.c")
        subprocess.run([compiler, "-O2", "-o", self._binary, source], check=True)
        log = self._directory / "target.log"
        with log.open("wb") as errors:
            process = subprocess.Popen(
                [self._binary, "sink-source", "0"],
                stdout=subprocess.PIPE,
                stderr=errors,
            )
        program = Program(process, log)
        try:
            yield int(program.first_line())
        finally:
            program.end(0)

    def get_one(self, peer: Peer) -> dict[str, float]:
        return self._bulk("get", peer)

    def put_one(self, peer: Peer) -> dict[str, float]:
        return self._bulk("put", peer)

    def get_eight(self, peer: Peer) -> dict[str, float]:
        found = self._load("get", peer, self.size.bulk_bytes // 8, 8)
        return {"get ×8, MB/s": found["mb_per_s"]}

    def echo(self, peer: Peer) -> dict[str, float]:
        found = self._load("echo", peer, self.size.seconds)
        return {"echo p50, µs": found["p50_us"], "echo p99, µs": found["p99_us"]}

    def requests(self, peer: Peer) -> dict[str, float]:
        found = self._load("rr", peer, self.size.seconds, 64)
        return {"rr 64, /s": found["per_s"]}

    def connections(self, peer: Peer) -> dict[str, float]:
        found = self._load("cps", peer, self.size.seconds, 32)
        return {"cps 32, /s": found["per_s"]}

    def echo_loaded(self, peer: Peer) -> dict[str, float]:
        command = [self._binary, "get", str(peer.port), str(ENDLESS_BYTES), "4"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as bulk:
            try:
                time.sleep(SETTLE_S)
                found = self._load("echo", peer, self.size.seconds)
                if bulk.poll() is not None:
                    raise BenchError("the bulk streams ended before the echo did")
            finally:
                bulk.kill()
        return {
            "echo p50 loaded, µs": found["p50_us"],
            "echo p99 loaded, µs": found["p99_us"],
        }

    def idle(self, peer: Peer) -> dict[str, float]:
        pids = peer.pids()
        time.sleep(SETTLE_S)
        before = cpu_seconds(pids)
        time.sleep(IDLE_S)
        used = cpu_seconds(pids) - before
        return {"idle CPU, %": 100 * used / IDLE_S} if pids else {}

    def _bulk(self, mode: str, peer: Peer) -> dict[str, float]:
        pids = peer.pids()
        before = cpu_seconds(pids)
        found = self._load(mode, peer, self.size.bulk_bytes, 1)
        used = (cpu_seconds(pids) - before) / (self.size.bulk_bytes / 1e9)
        figures = {f"{mode} ×1, MB/s": found["mb_per_s"]}
        return figures | ({f"CPU {mode}, s/GB": used} if pids else {})

    def _load(self, mode: str, peer: Peer, *numbers: int) -> dict[str, float]:
        command = [self._binary, mode, str(peer.port), *map(str, numbers)]
        limit_s = self.size.timeout_s
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=limit_s, check=False
            )
        except subprocess.TimeoutExpired:
            raise BenchError(f"{mode}: not done in {limit_s:g} s") from None
        if done.returncode:
            raise BenchError(f"{mode}: {done.stderr.strip()}")
        found: dict[str, float] = json.loads(done.stdout)
        return found


# A run


@dataclasses.dataclass
class Results:
    """What was found, by peer, figure and round, and what went wrong."""

    found: dict[str, dict[str, dict[int, float]]] = dataclasses.field(
        default_factory=dict
    )
    failures: list[str] = dataclasses.field(default_factory=list)

    def add(self, peer: str, figure: str, round_: int, value: float) -> None:
        self.found.setdefault(peer, {}).setdefault(figure, {})[round_] = value

    def values(self, peer: str, figure: str) -> dict[int, float]:
        return self.found.get(peer, {}).get(figure, {})

    def ratio(self, peer: str, base: str, figure: str) -> float | None:
        """Return the median over the rounds in which both were measured."""
        mine, theirs = self.values(peer, figure), self.values(base, figure)
        ratios = [mine[r] / theirs[r] for r in mine if theirs.get(r)]
        return statistics.median(ratios) if ratios else None


def measure(loads: Loads, peers: list[Peer], rounds: int) -> Results:
    """Run every load through every peer, one peer at a time, ``rounds`` times."""
    results = Results()
    if not peers:
        return results
    each_round: list[Callable[[Peer], dict[str, float]]] = [
        loads.get_one,
        loads.get_eight,
        loads.put_one,
        loads.echo,
        loads.requests,
        loads.connections,
        loads.echo_loaded,
    ]
    broken: set[tuple[str, str]] = set()
    for peer in peers:
        peer.pause()
    for round_ in range(rounds):
        order = peers[round_ % len(peers) :] + peers[: round_ % len(peers)]
        for load in [*each_round, loads.idle] if round_ == 0 else each_round:
            for peer in order:
                if (peer.name, load.__name__) in broken:
                    continue
                say(f"round {round_ + 1} of {rounds}: {load.__name__}, {peer.label}")
                try:
                    peer.resume()
                    for figure, value in load(peer).items():
                        results.add(peer.name, figure, round_, value)
                except BenchError as error:
                    broken.add((peer.name, load.__name__))
                    results.failures.append(f"{peer.label}, {load.__name__}: {error}")
                finally:
                    peer.pause()
    return results


def start_peers(
    stack: contextlib.ExitStack, peers: list[Peer], failures: list[str]
) -> list[Peer]:
    """Start what can be started; ``stack`` stops it again."""
    started = []
    for peer in peers:
        say(f"starting {peer.label}")
        stack.callback(peer.stop)
        try:
            peer.start()
        except NotInstalled as error:
            print(f"LEFT OUT: {peer.label}: {error}", file=sys.stderr)
        except BenchError as error:
            failures.append(f"{peer.label} did not start: {error}")
            peer.stop()
        else:
            started.append(peer)
    return started


def say(text: str) -> None:
    """Show what goes on, on one line of a terminal; say nothing to a file."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


# What is shown


def machine() -> dict[str, str]:
    return {
        "processor": f"{len(os.sched_getaffinity(0))} cores, {processor_name()}",
        "kernel": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "commit": commit(),
        "openssh": output("ssh", "-V"),
        "load before": f"{os.getloadavg()[0]:.2f}",
        "date": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
    }


def processor_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def commit() -> str:
    name = output("git", "-C", str(HERE), "rev-parse", "--short", "--verify", "HEAD")
    if name.startswith("unknown"):
        return name
    changed = output("git", "-C", str(HERE), "status", "--porcelain", "-uno")
    return f"{name}, with changes" if changed else name


def output(*command: str) -> str:
    """Return the first line that a command prints, wherever; or why there is none."""
    try:
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"unknown: {error}"
    line = done.stdout.strip().partition("\n")[0]
    return f"unknown: {line}" if done.returncode else line


def table(results: Results, peers: list[Peer]) -> Iterator[str]:
    """Yield one line for each figure of each peer."""
    yield row(
        "figure", "peer", "median", "min..max", "× direct", "× OpenSSH", "floor", "met"
    )
    for figure, floor in FIGURES.items():
        yield ""
        for peer in peers:
            values = results.values(peer.name, figure).values()
            if not values:
                continue
            yield row(
                figure,
                peer.label,
                number(statistics.median(values)),
                f"{number(min(values))}..{number(max(values))}",
                factor(results.ratio(peer.name, DIRECT, figure)),
                factor(results.ratio(peer.name, OPENSSH, figure)),
                *judged(results, peer, figure, floor),
            )


def judged(
    results: Results, peer: Peer, figure: str, floor: Floor | None
) -> tuple[str, str]:
    if not isinstance(peer, Tunnel) or floor is None:
        return "", ""
    ratio = results.ratio(peer.name, floor.base, figure)
    if ratio is None or isinstance(peer, PlainTunnel):
        return str(floor), "-"
    return str(floor), "yes" if floor.met(ratio) else "NO"


def row(*cells: str) -> str:
    widths = (20, -17, 10, 19, 9, 10, -15, -3)
    padded = [
        cell.ljust(-width) if width < 0 else cell.rjust(width)
        for cell, width in zip(cells[1:], widths[1:], strict=True)
    ]
    return "  ".join([cells[0].ljust(widths[0]), *padded]).rstrip()


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def factor(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}"


# The command


PEERS: Final[dict[str, type[Peer]]] = {
    DIRECT: Direct,
    OPENSSH: OpenSSH,
    TUNNEL: Tunnel,
}


def arguments() -> argparse.Namespace:
    question, _, method = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=question,
        epilog=method,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, help="default 3, with --quick 2")
    parser.add_argument("--quick", action="store_true", help="less than two minutes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep every value")
    parser.add_argument("--only", default=",".join(PEERS), metavar="PEER,PEER")
    parser.add_argument("--plain", action="store_true", help="the tunnel without TLS")
    options = parser.parse_args()
    options.only = options.only.split(",")
    if unknown := set(options.only) - set(PEERS):
        parser.error(f"--only knows {', '.join(PEERS)}; not {', '.join(unknown)}")
    options.rounds = options.rounds or (2 if options.quick else 3)
    if options.rounds < 1:
        parser.error("--rounds must be 1 or more")
    return options


def end_of_process(signum: int, frame: object) -> None:
    """Turn SIGTERM into an exception, so that all is stopped on the way out."""
    raise SystemExit(128 + signum)


def main() -> int:
    options = arguments()
    signal.signal(signal.SIGTERM, end_of_process)
    about = machine()
    failures: list[str] = []
    with contextlib.ExitStack() as stack:
        directory = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-"))
        )
        loads = Loads(directory, QUICK if options.quick else FULL)
        try:
            target_port = stack.enter_context(loads.target())
        except BenchError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        peers = []
        for name in PEERS:
            if name in options.only:
                kind = PlainTunnel if name == TUNNEL and options.plain else PEERS[name]
                place = directory / name
                place.mkdir()
                peers.append(kind(target_port, place))
        peers = start_peers(stack, peers, failures)
        results = measure(loads, peers, options.rounds)
    say("")
    failures += results.failures
    print("\n".join(f"{key:12} {value}" for key, value in about.items()))
    print(f"{'rounds':12} {options.rounds}{', quick' if options.quick else ''}\n")
    print("\n".join(table(results, peers)))
    for failure in failures:
        print(f"FAILED: {failure}")
    if options.json:
        content = {
            "machine": about,
            "peers": {peer.name: peer.label for peer in peers},
            "quick": options.quick,
            "found": results.found,
            "failures": failures,
        }
        text = json.dumps(content, indent=1, ensure_ascii=False)
        options.json.write_text(f"{text}\n")
    return 1 if failures else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
