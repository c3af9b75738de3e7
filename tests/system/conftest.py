"""Fixtures of the system tests."""

from __future__ import annotations

import signal
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
from support.processes import Machine
from support.targets import Content, Target, echo
from support.world import MODES, World

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.processes import Server
    from support.world import MakeWorld


FIGURES = pytest.StashKey[list[str]]()


@pytest.fixture(scope="session", autouse=True)
def hang_ups() -> Iterator[None]:
    """Start programs as a terminal does, also where these tests run under ``nohup``."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path)
    yield made
    made.close()


@pytest.fixture
def far(tmp_path: Path) -> Iterator[Machine]:
    """Give a second machine: its folders are others, and so are its processes."""
    made = Machine(tmp_path / "far")
    made.home.mkdir()
    yield made
    made.close()


@pytest.fixture
def target() -> Iterator[Target]:
    with Target(echo) as running:
        yield running


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One for all tests that leave it as it was."""
    machine = Machine(tmp_path_factory.mktemp("server"))
    yield machine.serve()
    machine.close()


@pytest.fixture(scope="session")
def content(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Content]:
    made = Content(tmp_path_factory.mktemp("content") / "bytes", 1)
    yield made
    made.path.unlink()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run over a plain link each time what is about bytes and ends, else if deep."""
    if "world" in metafunc.fixturenames:
        each_time = metafunc.module.__name__.endswith(
            ("test_endings", "test_transfers")
        )
        plain = pytest.param("plain", marks=() if each_time else pytest.mark.deep)
        metafunc.parametrize("world", ["tls", plain], indirect=True, scope="session")


@pytest.fixture(scope="session")
def world(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    content: Content,
) -> Iterator[World]:
    """One for all tests that leave it as it was."""
    home = tmp_path_factory.mktemp(request.param)
    made = World(Machine(home), content, *MODES[request.param])
    yield made
    made.close()


@pytest.fixture
def make_world(machine: Machine, content: Content) -> Iterator[MakeWorld]:
    """Make one for a test that breaks it."""
    with ExitStack() as stack:

        def make(*serve: str) -> World:
            made = World(machine, content, *serve)
            stack.callback(made.close)
            return made

        yield make


@pytest.fixture(scope="session")
def figures(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Note a measured figure; all are printed behind the tests."""
    return request.config.stash.setdefault(FIGURES, []).append


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Give what a worker of ``-n`` has noted to the process that prints."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["figures"] = session.config.stash.get(FIGURES, [])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:  # noqa: ANN401 - xdist may be absent
    """Take what a worker has noted; one that was killed has nothing to give."""
    noted = getattr(node, "workeroutput", {}).get("figures", [])
    node.config.stash.setdefault(FIGURES, []).extend(noted)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    if noted := config.stash.get(FIGURES, []):
        terminalreporter.section("figures")
        for text in noted:
            terminalreporter.write_line(text)
