"""An entry that leads somewhere else, and is otherwise as it was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tunnel.addresses import Address
from tunnel.errors import UsageError
from tunnel.front.http.files import Folder
from tunnel.front.http.service_rules import Own
from tunnel.ops.entries import Local, Service, SharedFolder
from tunnel.ops.entry_values import (
    parse_far_target,
    parse_target,
    parse_targets,
    parse_url_target,
)
from tunnel.proto.frames import MappingType

if TYPE_CHECKING:
    from tunnel.addresses import End
    from tunnel.ops.entries import Entry, Published


def led_to(entry: Entry, text: str) -> Entry:
    """Return an entry with another target, and with all its words.

    Raises:
        UsageError: it leads to no target, or cannot lead to this one.
    """
    if isinstance(entry, Local):
        if entry.target is None:
            raise UsageError("the apps of a proxy name their targets")
        return replace(entry, target=parse_far_target(text))
    match entry.endpoint:
        case SharedFolder(folder) as shared:
            try:
                other = Folder(Path(text).expanduser(), listing=folder.listing)
            except (OSError, RuntimeError, ValueError) as error:
                why = getattr(error, "strerror", None) or str(error)
                raise UsageError(f"{text:.200} cannot be shared", why) from error
            return replace(entry, endpoint=replace(shared, folder=other))
        case Service() as service:
            return replace(entry, endpoint=_service(entry, service, text))
        case _:
            raise UsageError("a proxy has no target", "its visitors name theirs")


def _service(entry: Published, service: Service, text: str) -> Service:
    if entry.wanted.type in (MappingType.TCP, MappingType.UDP):
        end, count = parse_targets(text)
        if count != service.count:
            why = f"it has {service.count} ports in a row"
            raise UsageError(f"{text} is not as long as this entry", why)
        if entry.wanted.type == MappingType.UDP and not isinstance(end, Address):
            raise UsageError(f"{text} takes no datagrams", "UDP goes to an address")
        return replace(service, target=end)
    scheme, is_url, where = text.partition("://")
    secure = service.tls is not None
    if secure is not (is_url != "" and scheme == "https"):
        how = "with TLS" if secure else "without"
        raise UsageError(
            f"this entry speaks {how} to its target",
            "its words hold for that alone",
            "remove it, and add another",
        )
    is_url_target = is_url and scheme in ("http", "https")
    target = parse_url_target(scheme, where) if is_url_target else parse_target(text)
    return _web_service(service, target)


def _web_service(service: Service, target: End) -> Service:
    """Return it with what its words make of another target."""
    rules, tls, was = service.rules, service.tls, service.target
    if rules is not None and rules.own is not None:
        own = Own.of(target, secure=tls is not None)
        rules = replace(rules, own=own, host=own.authority)
    if tls is not None and isinstance(was, Address) and isinstance(target, Address):
        name = target.host if tls.name == was.host else tls.name
        tls = replace(tls, name=name)
    return replace(service, target=target, rules=rules, tls=tls)
