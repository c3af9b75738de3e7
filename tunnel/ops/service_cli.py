"""``tunnel service``: words and flags in, a unit of systemd out."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from tunnel.errors import Exit, StateError
from tunnel.ops.service.unit import Role  # noqa: TC001 - cyclopts reads the annotations

if TYPE_CHECKING:
    from tunnel.ops.service.unit import Unit


def add_to(app: App) -> None:
    """Add the commands."""
    service = App(name="service", help="Have systemd start a server or a client.")
    service.command(_Install(app).install)
    service.command(uninstall)
    app.command(service)


class _Install:
    """The command that reads another one's words, as ``app`` does."""

    def __init__(self, app: App) -> None:
        self._app = app

    def install(
        self,
        role: Role = "serve",
        /,
        *words: Annotated[str, Parameter(allow_leading_hyphen=True)],
        user: bool = False,
        print_: Annotated[bool, Parameter(name="--print")] = False,
        name: str | None = None,
        run_as: str | None = None,
        low_ports: bool = False,
        credential: list[str] | None = None,
        force: bool = False,
    ) -> int:
        """Write a unit that starts `serve` or `up`, and say what comes next.

        Args:
            role: serve or up.
            words: Its flags.
            user: For this user's own systemd; it ends with the last login, unless
                `loginctl enable-linger` was said.
            print_: Only print the unit.
            name: Of the unit, by default tunnel-serve or tunnel-up.
            run_as: The user that it runs as; without it one that systemd makes.
            low_ports: It may listen below 1024, which is found out where its flags or
                its file say such a port, and not where clients ask for one.
            credential: ID:PATH of a secret that root alone can read, for
                `token_file = "$CREDENTIALS_DIRECTORY/ID"`. Repeatable.
            force: Replace a unit that was changed, or that somebody else has written.
        """
        from tunnel.ops.service.install import make_unit, place_of, unreachable, write
        from tunnel.ops.show import Show

        called = name or f"tunnel-{role}"
        place_of(called, user=user)
        unit = make_unit(
            self._app, role, words, name=called, user=user, run_as=run_as,
            low_ports=low_ports, credentials=credential or [],
        )  # fmt: skip
        show = Show(log="terminal")
        where = unreachable(unit)
        if print_:
            sys.stdout.write(unit.text())
            sys.stdout.flush()
            if where:
                show.lines([f"warning: the service's user cannot reach {where}"])
            return Exit.OK
        if where:
            raise StateError(
                f"the service's user could not reach {where}",
                "it is in a folder that is private, or that services do not see",
                "python -m venv /opt/tunnel, and install it there; or --user",
            )
        path, changed = write(unit, force=force)
        show.line("written" if changed else "unchanged", f"wrote {path}" if changed
                  else f"{path} is as it should be", path=str(path))  # fmt: skip
        show.lines(_next(unit))
        return Exit.OK


def uninstall(
    role: Role = "serve",
    /,
    *,
    user: bool = False,
    name: str | None = None,
    force: bool = False,
) -> int:
    """Stop and remove what `tunnel service install` made; keys and users stay.

    Args:
        role: serve or up.
        user: Of this user's own systemd.
        name: Of the unit, by default tunnel-serve or tunnel-up.
        force: Also one that was changed, or that somebody else has written.
    """
    from tunnel.ops.service.install import remove
    from tunnel.ops.show import Show

    called = name or f"tunnel-{role}"
    path = remove(called, user=user, force=force)
    show = Show(log="terminal")
    show.line("removed", f"removed {path}", path=str(path))
    if not user:
        show.lines([f"what it has kept is in /var/lib/{called}"])
    return Exit.OK


def _next(unit: Unit) -> list[str]:
    """Return what to paste, and where things are."""
    control, journal = "systemctl", "journalctl"
    if unit.user:
        control, journal = f"{control} --user", f"{journal} --user"
    secrets = [one.partition(":")[::2] for one in unit.credentials]
    lines = [
        "next:",
        *(f"  install -Dm600 /dev/stdin {file}    # paste the {what}, then Ctrl+D"
          for what, file in secrets),
        f"  {control} daemon-reload && {control} enable --now {unit.name}",
        f"  {journal} -u {unit.name} -f",
    ]  # fmt: skip
    if unit.user:
        lines.append("  loginctl enable-linger    # it starts without a login then")
        return lines
    program, runtime = unit.command[0], f"XDG_RUNTIME_DIR=/run/{unit.name}"
    lines.append(f"  sudo -u {unit.run_as or unit.name} {runtime} {program} status")
    if unit.role == "serve":
        join = f"{program} serve --print-join --state /var/lib/{unit.name}/tunnel"
        lines.append(f"  TUNNEL_TRUST_FILES=yes {join}    # the line for clients")
    return lines
