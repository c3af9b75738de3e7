"""What ``tunnel invite`` and ``tunnel users`` do to the users of a state folder.

The same in a running server, for whom the control socket asks, and in the command
itself where no server runs. Arguments and answers are what JSON can say.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from tunnel.access.join import make_token
from tunnel.access.limits import parse_limits
from tunnel.access.rules import default_rights, parse_rights
from tunnel.access.user_file import changed_users, load_users, time_text
from tunnel.access.users import MAX_USERS, Once, User, check_name, find_user
from tunnel.addresses import Address, host_of
from tunnel.errors import UsageError
from tunnel.log import log_event
from tunnel.proto.proofs import verifier_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tunnel.access.join import JoinLine, Secret

Args = Mapping[str, object]
Answer = dict[str, object]

LEAST_EXPIRES_S: Final = 1
MOST_EXPIRES_S: Final = 10 * 366 * 86_400
"""Ten years: what is to last longer does not expire."""

logger = logging.getLogger("tunnel.users")


class UserCommands:
    """The commands over the users of one state folder; each blocks for its files.

    Args:
        state: the folder.
        line: returns the owner's join line, of which those of others are made.
        now: returns the time, in seconds of Unix time.
        of_file: the users of the server's configuration file, which no command changes;
            may be replaced.
    """

    def __init__(
        self,
        state: Path,
        line: Callable[[], JoinLine],
        now: Callable[[], float] = time.time,
        of_file: Mapping[str, User] | None = None,
    ) -> None:
        self.of_file: Mapping[str, User] = of_file or {}
        self._state = state
        self._line = line
        self._now = now
        self._known: dict[str, Callable[[Args, str], Answer]] = {
            "invite": self._invite,
            "ls": self._list,
            "show": self._show,
            "revoke": self._revoke,
            "rotate": self._rotate,
            "limit": self._limit,
            "may": self._may,
            "expires": self._expires,
            "rename": self._rename,
        }

    @property
    def names(self) -> tuple[str, ...]:
        """The commands that there are."""
        return tuple(self._known)

    def perform(self, command: str, args: Args, by: str) -> Answer:
        """Do a command, and log one line about what it changed.

        Args:
            command: one of ``names``.
            args: its arguments.
            by: who asks, for the log.

        Raises:
            UsageError: an argument cannot be used; nothing has changed.
            StateError: the files cannot be read or written; nothing has changed.
        """
        return self._known[command](args, by)

    # Each command --------------------------------------------------------------------

    def _invite(self, args: Args, by: str) -> Answer:
        name = _text(args, "name")
        check_name(name)
        may = _texts(args, "may")
        rights = parse_rights(may, "--may") if may else default_rights(name)
        limits = parse_limits(_texts(args, "limits"), "--limit")
        line = self._line_for(args)
        once = _once(args, line)
        token = make_token()
        user = User(
            name, verifier_of(name, token.reveal()), rights, limits,
            self._expiry(args), once,
        )  # fmt: skip
        self._refuse_of_file(name)
        with changed_users(self._state) as users:
            if name in users:
                fix = f"tunnel users rotate {name}, or revoke {name}"
                raise UsageError(f"there is a user {name} already", fix=fix)
            if len(users) >= MAX_USERS:
                raise UsageError(f"there are {MAX_USERS} users, and no more may be")
            users[name] = user
        _audit("user.invited", user, by)
        return _shown(user) | {"join": _joined(line, name, token)}

    def _list(self, _args: Args, _by: str) -> Answer:
        users = {**load_users(self._state), **self.of_file}
        return {"users": [_shown(users[name]) for name in sorted(users)]}

    def _show(self, args: Args, _by: str) -> Answer:
        users = {**load_users(self._state), **self.of_file}
        return _shown(find_user(users, _text(args, "name")))

    def _revoke(self, args: Args, by: str) -> Answer:
        with changed_users(self._state) as users:
            user = self._find(users, args)
            del users[user.name]
        _audit("user.revoked", user, by)
        return _shown(user)

    def _rotate(self, args: Args, by: str) -> Answer:
        line, token = self._line_for(args), make_token()
        asked = _once(args, line)
        with changed_users(self._state) as users:
            user = self._find(users, args)
            verifier = verifier_of(user.name, token.reveal())
            once = Once() if user.once else asked
            users[user.name] = user = replace(user, verifier=verifier, once=once)
        _audit("user.rotated", user, by)
        return _shown(user) | {"join": _joined(line, user.name, token)}

    def _limit(self, args: Args, by: str) -> Answer:
        words = _texts(args, "limits")
        if not words:
            raise UsageError("no limit is given", fix="for example --rate 5MB/s")
        with changed_users(self._state) as users:
            user = self._find(users, args)
            limits = parse_limits(words, "--limit", user.limits)
            users[user.name] = user = replace(user, limits=limits)
        _audit("user.limited", user, by)
        return _shown(user)

    def _may(self, args: Args, by: str) -> Answer:
        words = _texts(args, "may")
        rights = parse_rights(words, "may")
        with changed_users(self._state) as users:
            user = self._find(users, args)
            users[user.name] = user = replace(user, rights=rights)
        _audit("user.allowed", user, by)
        return _shown(user)

    def _expires(self, args: Args, by: str) -> Answer:
        expires_at = self._expiry(args)
        with changed_users(self._state) as users:
            user = self._find(users, args)
            users[user.name] = user = replace(user, expires_at=expires_at)
        _audit("user.prolonged", user, by)
        return _shown(user)

    def _rename(self, args: Args, by: str) -> Answer:
        """Give a user another name, and a token: proofs are made of both."""
        line, token, name = self._line_for(args), make_token(), _text(args, "to")
        check_name(name)
        self._refuse_of_file(name)
        with changed_users(self._state) as users:
            before = self._find(users, args)
            if name in users:
                raise UsageError(f"there is a user {name} already")
            once = Once() if before.once else None
            verifier = verifier_of(name, token.reveal())
            user = replace(
                before, name=name, verifier=verifier, once=once, was=before.name
            )
            del users[before.name]
            users[name] = user
        _audit("user.renamed", user, by, was=before.name)
        return _shown(user) | {"join": _joined(line, name, token)}

    # Their arguments -----------------------------------------------------------------

    def _find(self, users: Mapping[str, User], args: Args) -> User:
        name = _text(args, "name")
        self._refuse_of_file(name)
        return find_user(users, name)

    def _refuse_of_file(self, name: str) -> None:
        """Raise UsageError for a user of the configuration file, with its place."""
        if (user := self.of_file.get(name)) is not None:
            what = f"the user {name} stands in {user.place}"
            why = "a command does not change that file"
            raise UsageError(what, why, "change it there, and the server reads it")

    def _expiry(self, args: Args) -> float | None:
        seconds = args.get("expires_s")
        if seconds is None:
            return None
        if type(seconds) is not int or not (  # True is an int too
            LEAST_EXPIRES_S <= seconds <= MOST_EXPIRES_S
        ):
            raise UsageError("--expires is out of range", "it is 1s to 3660d")
        return float(int(self._now()) + seconds)

    def _line_for(self, args: Args) -> JoinLine:
        line = self._line()
        if args.get("address") is None:
            return line
        text = _text(args, "address")
        host, port = host_of(text), line.port
        if host is None:
            address = Address.parse(text)
            host, port = address.host, address.port
        return replace(line, host=host, port=port)


def _text(args: Args, key: str) -> str:
    found = args.get(key)
    if not isinstance(found, str):
        raise UsageError(f"{key} is not a text")
    return found


def _texts(args: Args, key: str) -> list[str]:
    found = args.get(key, [])
    texts = found if isinstance(found, list) else [found]
    words = [one for one in texts if isinstance(one, str)]
    if len(words) != len(texts):
        raise UsageError(f"{key} is not a list of texts")
    return words


def _once(args: Args, line: JoinLine) -> Once | None:
    """Return what makes a token work once, if that is asked for."""
    if args.get("once") is not True:
        return None
    if line.plain:
        what = "--once needs TLS, and this server's links are plain"
        why = "whoever reads the link could be that one machine"
        fix = "leave --once out, or tunnel serve without --plain"
        raise UsageError(what, why, fix)
    return Once()


def _joined(line: JoinLine, name: str, token: Secret) -> str:
    return replace(line, name=name, token=token).render()


def _shown(user: User) -> Answer:
    expires = None if user.expires_at is None else time_text(user.expires_at)
    once = None
    if user.once is not None:
        once = user.once.client_id.hex()[:8] if user.once.own else "unused"
    return {
        "user": user.name,
        "may": list(user.rights.words),
        "limits": list(user.limits.words),
        "expires": expires,
        "once": once,
        "file": user.place or None,
    }


def _audit(event: str, user: User, by: str, was: str | None = None) -> None:
    expires = None if user.expires_at is None else time_text(user.expires_at)
    log_event(logger, logging.INFO, event, user=user.name, by=by, was=was,
        may=" ".join(user.rights.words) or "nothing",
        limits=" ".join(user.limits.words) or None, expires=expires,
        once=True if user.once else None)  # fmt: skip
