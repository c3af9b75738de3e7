"""What a process is to be by now: the same command line, the present file.

This is what a reload compares with what runs.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from cyclopts import CycloptsError

from tunnel.errors import ConfigError, UsageError
from tunnel.ops.config.source import SECTION_OF, FileSource
from tunnel.ops.flags import EntryFlags, RunFlags, ServerFlags, UpFlags
from tunnel.ops.serve_flags import ServeFlags
from tunnel.ops.variables import Environment, refuse_empty

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from cyclopts import App, ArgumentCollection

    from tunnel.access.users import User
    from tunnel.ops.entries import Entry

T = TypeVar("T")


class Source:
    """Reads a command line, the environment and the file, as often as asked.

    Args:
        app: has the commands.
        argv: the command line, from the name of the command on.
        path: the file that was read at the start, or that would have been.
        told: it said something then: one that says nothing is a slip, and refused.
    """

    def __init__(
        self, app: App, argv: Sequence[str], path: Path | None, *, told: bool = False
    ) -> None:
        self._app = app
        self._argv = list(argv)
        self._told = told
        self.path = path

    def parse_serve(self) -> tuple[ServeFlags, RunFlags, Mapping[str, User]]:
        """Return what a center-server is to be.

        Raises:
            ConfigError: the file is wrong, with all its faults.
            UsageError: file and command line contradict one another.
        """
        arguments, file = self._parse()
        flags = _of(ServeFlags, arguments)
        run = _of(RunFlags, arguments)
        with _blaming(file):
            flags.options(), flags.host(), run.drain_s(), run.timeouts(), run.limits()
        return flags, run, file.users

    def parse_up(self) -> tuple[ServerFlags, list[Entry], UpFlags]:
        """Return what a center-client is to be; raises as ``parse_serve``."""
        from tunnel.ops.entries import refuse_twice

        arguments, file = self._parse()
        server, run = _of(ServerFlags, arguments), _of(UpFlags, arguments)
        entries = [*_of(EntryFlags, arguments).entries(), *file.entries]
        with _blaming(file):
            run.drain_s(), run.timeouts(), run.limits(), run.keep_bytes()
            refuse_twice(entries)
        return server, entries, run

    def arguments(self) -> tuple[ArgumentCollection, FileSource]:
        """Return every flag with its values, and each value with where it is from.

        Raises:
            ConfigError: the file is wrong, with all its faults.
            UsageError: the command line is.
        """
        kept = _Kept()
        _, file = self._parse(kept)
        return kept.arguments, file

    def _parse(self, *more: _Kept) -> tuple[dict[str, object], FileSource]:
        file = FileSource()
        sources = self._app.config
        self._app.config = (refuse_empty, Environment(), file, *more)
        try:
            _, bound, _ = self._app.parse_args(
                self._argv, print_error=False, exit_on_error=False
            )
        except CycloptsError as error:
            raise UsageError(str(error)) from None
        finally:
            self._app.config = sources
        if self._told and file.config is not None and not file.has_section:
            what = f"[{SECTION_OF[self._argv[0]]}] is there no more"
            why = (
                "a file that says nothing changes nothing; comment its keys out instead"
            )
            raise ConfigError([f"{self.path}: {what}: {why}"])
        return bound.arguments, file


@contextmanager
def _blaming(file: FileSource) -> Iterator[None]:
    """Have the file named where its values are part of what is wrong."""
    try:
        yield
    except UsageError as error:
        raise file.blamed(error) from None


class _Kept:
    """A source of cyclopts that gives nothing, and keeps what the others gave."""

    arguments: ArgumentCollection

    def __call__(
        self, _app: App, _commands: tuple[str, ...], arguments: ArgumentCollection
    ) -> None:
        self.arguments = arguments


def _of(kind: type[T], arguments: Mapping[str, object]) -> T:
    """Return the flags of one kind; the usual ones where nothing was said."""
    return next((one for one in arguments.values() if isinstance(one, kind)), kind())
