"""The control sockets of running processes, and what commands ask over them.

processes          which processes of this user run, and where their sockets are
ask                a question to one of them, without trio
service            questions are heard and answered
server_handlers    what a center-server answers
client_handlers    what a center-client answers
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

Args = Mapping[str, object]
Answer = dict[str, object]
Handler = Callable[[Args, str], Awaitable[Answer]]
"""Takes the arguments and who asks; returns the answer, or raises TunnelError."""
Handlers = Mapping[str, Handler]
