"""``tunnel ps``, ``status`` and the other commands to processes that run.

They mostly run without this module: see ``control.commands.quick``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from tunnel.ops.control import commands

if TYPE_CHECKING:
    from cyclopts import App

Json = Annotated[bool, Parameter(name="--json")]


def add_to(app: App) -> None:
    """Add the commands to those of the program."""
    for command in (
        ps,
        status,
        top,
        why,
        kick,
        limit,
        add,
        remove,
        pause,
        resume,
        lead,
        drain,
        stop,
        retry,
        reload,
        logs,
        tail,
        dashboard,
    ):
        app.command(command)


def ps(*, as_json: Json = False) -> int:
    """List the servers and clients of this user that run here.

    Args:
        as_json: Each line of stdout is a JSON object.
    """
    return commands.ps(as_json=as_json)


def status(
    name: str | None = None,
    /,
    *,
    as_json: Json = False,
    quiet: bool = False,
    watch: bool = False,
) -> int:
    """Show what a process does: links, entries, connections, bytes, last faults.

    Args:
        name: One of `tunnel ps`, or a beginning of it; without it, all.
        as_json: Each line of stdout is a JSON object.
        quiet: Print nothing: status 0 if all are well, 4 if a client has no link, 10
            if nothing runs.
        watch: Again each second, until Ctrl+C.
    """
    return commands.status(name, as_json=as_json, quiet=quiet, watch=watch)


def top(name: str | None = None, /) -> int:
    """Show connections live, those first that carry most, and what each waits for.

    Args:
        name: One of `tunnel ps`, if there are several.
    """
    return commands.top(name)


def kick(which: str, name: str | None = None, /) -> int:
    """End a client's session, or one connection; the client may come back.

    At the client's side, the id of its link only cuts that: its connections go on over
    the next.

    Args:
        which: An id of `tunnel status`, or of `tunnel top`.
        name: One of `tunnel ps`; without it, the first that knows the id.
    """
    return commands.kick(which, name)


def limit(entry: str, rate: str, name: str | None = None, /) -> int:
    """Limit the bytes per second of an entry of a client, each way; holds at once.

    Args:
        entry: Its name in `tunnel status`, or its public port.
        rate: As 5MB/s; none: no limit.
        name: One of `tunnel ps`, if there are several clients.
    """
    return commands.limit(entry, rate, name)


def add(
    flag: str, entry: str, name: str | None = None, /, *, save: bool = False
) -> int:
    """Add an entry to a running client; it is there until it ends, or reads its file.

    Args:
        flag: tcp, udp, http, https, reach, socks or be-exit.
        entry: What follows the flag of that name in `tunnel up`.
        name: One of `tunnel ps`, if there are several clients.
        save: Add it to the client's file too, and so for good.
    """
    return commands.add(flag, entry, name, save=save)


def remove(
    entry: str, name: str | None = None, /, *, now: bool = False, save: bool = False
) -> int:
    """Take an entry away from a running client; who is in may go on.

    Args:
        entry: Its name in `tunnel status`, or its public port.
        name: One of `tunnel ps`, if there are several clients.
        now: Cut who is in.
        save: Take it out of the client's file too.
    """
    return commands.remove(entry, name, now=now, save=save)


def pause(entry: str, name: str | None = None, /) -> int:
    """Refuse new visitors of an entry of a client; it keeps its port or name.

    Args:
        entry: Its name in `tunnel status`, or its public port.
        name: One of `tunnel ps`, if there are several clients.
    """
    return commands.pause(entry, name)


def resume(entry: str, name: str | None = None, /) -> int:
    """Serve the visitors of a paused entry again.

    Args:
        entry: Its name in `tunnel status`, or its public port.
        name: One of `tunnel ps`, if there are several clients.
    """
    return commands.resume(entry, name)


def lead(entry: str, target: str, name: str | None = None, /) -> int:
    """Lead an entry of a client to another target; its words and who is in stay.

    Args:
        entry: Its name in `tunnel status`, or its public port.
        target: As behind the = of its flag in `tunnel up`.
        name: One of `tunnel ps`, if there are several clients.
    """
    return commands.lead(entry, target, name)


def drain(name: str | None = None, /) -> int:
    """End a process as SIGTERM does: what runs may go on for its --drain.

    Args:
        name: One of `tunnel ps`, if there are several.
    """
    return commands.drain(name)


def stop(name: str | None = None, /) -> int:
    """End a process at once: what runs is reset.

    Args:
        name: One of `tunnel ps`, if there are several.
    """
    return commands.stop(name)


def retry(name: str | None = None, /) -> int:
    """Have a client without a link try again now, and not after its pause.

    Args:
        name: One of `tunnel ps`, if there are several.
    """
    return commands.retry(name)


def reload(name: str | None = None, /, *, now: bool = False) -> int:
    """Have a process read its file again; prints what has changed.

    Args:
        name: One of `tunnel ps`, if there are several.
        now: Cut the connections of entries that were changed or removed.
    """
    return commands.reload(name, now=now)


def logs(name: str | None = None, /, *, follow: bool = False) -> int:
    """Print the last lines of a process's log.

    Args:
        name: One of `tunnel ps`, if there are several.
        follow: Go on with those to come, until Ctrl+C.
    """
    return commands.logs(name, follow=follow)


def tail(
    name: str | None = None,
    /,
    *,
    entry: str | None = None,
    show: int | None = None,
    reveal: bool = False,
    once: bool = False,
    as_json: Json = False,
) -> int:
    """Show the requests of inspected entries as they end, until Ctrl+C.

    Args:
        name: One of `tunnel ps`, if several clients inspect.
        entry: Only those of this entry, by its name in `tunnel status`.
        show: The number of one request, to be shown whole instead.
        reveal: With --show: passwords, cookies and the like too.
        once: Those that have ended by now, and no more.
        as_json: Each line of stdout is a JSON object.
    """
    from tunnel.ops.control.tail import tail as show_them

    return show_them(
        name, as_json=as_json, once=once, request=show, reveal=reveal, entry=entry
    )


def dashboard(
    name: str | None = None,
    /,
    *,
    open_it: Annotated[bool, Parameter(name="--open")] = False,
) -> int:
    """Print the URL of the page of a process, with its token.

    Args:
        name: One of `tunnel ps`, if several have a page.
        open_it: Open it in a browser too.
    """
    return commands.dashboard(name, open_it=open_it)


def why(connection: str | None = None, /, *, as_json: Json = False) -> int:
    """Say why a connection is slow: what it waits for, now and in the last minute.

    Args:
        connection: Its id; without it, those that wait most are listed.
        as_json: Each line of stdout is a JSON object.
    """
    return commands.why(connection, as_json=as_json)
