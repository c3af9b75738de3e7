"""The inspector of a client, loaded when an entry first asks for it.

Until then it costs this module, and the names of its commands.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from tunnel.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from tunnel.front.http.observer import Watch
    from tunnel.ops.control import Answer, Args, Handler
    from tunnel.ops.flags import UpFlags
    from tunnel.ops.inspector.inspector import Inspector

NEWS_S: Final = 0.25
"""How often a page is told: what changes meanwhile comes together."""
STILL_S: Final = 10.0
"""A page that is told nothing for so long is sent an empty line, to notice its end."""
COMMANDS: Final = ("list", "show", "find", "replay", "curl", "har", "clear")


class Inspecting:
    """Gives entries who looks at their requests, and answers commands about these.

    Args:
        nursery: where requests that are asked again run.
        flags: say how much is kept, and what is hidden.
    """

    def __init__(self, nursery: trio.Nursery, flags: UpFlags) -> None:
        self._nursery = nursery
        self._flags = flags
        self._inspector: Inspector | None = None

    @property
    def is_on(self) -> bool:
        """Whether an entry has asked for it."""
        return self._inspector is not None

    def watch(self, entry: str) -> Watch:
        """Return who looks at the requests of an entry: an ``Inspect``."""
        if self._inspector is None:
            from tunnel.ops.inspector.inspector import Inspector

            keep, hide = self._flags.keep_bytes(), self._flags.inspect_hide or ()
            self._inspector = Inspector(self._nursery, keep, hide)
        return self._inspector.watch(entry)

    @property
    def handlers(self) -> Mapping[str, Handler]:
        """What the control socket answers."""
        return {f"inspect.{name}": partial(self._do, name) for name in COMMANDS}

    async def _do(self, name: str, args: Args, _by: str) -> Answer:
        inspector = self._known()
        match name:
            case "list":
                return inspector.list(args)
            case "show":
                return inspector.show(args)
            case "find":
                return await inspector.find(args)
            case "replay":
                return await inspector.replay(args)
            case "curl":
                return inspector.curl(args)
            case "har":
                return await inspector.har(args)
            case _:
                return inspector.clear()

    def _known(self) -> Inspector:
        if self._inspector is None:
            raise UsageError(
                "no entry of this client is inspected",
                "requests are kept only of entries that ask for it",
                "tunnel share 8000 --inspect, or up --http NAME=TARGET,inspect",
            )
        return self._inspector

    async def told(self, args: Args) -> AsyncGenerator[Answer, None]:
        """Yield what has changed, as ``inspect.list`` says it, for as long as asked.

        Raises:
            UsageError: nothing is inspected.
        """
        inspector = self._known()
        after = args.get("after", 0)
        while True:
            answer = inspector.list({"after": after})
            yield answer
            after = answer["version"]
            assert isinstance(after, int)  # noqa: S101 - as it was made
            with trio.move_on_after(STILL_S) as still:
                await inspector.store.changed(after)
            if still.cancelled_caught:
                yield {}
                continue
            await trio.sleep(NEWS_S)
