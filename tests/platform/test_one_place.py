"""``tunnel.platform`` alone knows one operating system."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from support.tables import ROOT

if TYPE_CHECKING:
    from pathlib import Path

OTHERS = sorted(
    path
    for path in (ROOT / "tunnel").rglob("*.py")
    if path.parent != ROOT / "tunnel" / "platform"
)
KNOWS_ONE = re.compile(
    r"\bimport (fcntl|termios|resource|msvcrt|winreg|pwd|grp)\b"
    r"|\bsys\.platform\b|\bos\.name\b|\bplatform\.system\b"
    r"|\bselect\.(epoll|kqueue|poll)\b|\bEPOLL|/proc/|FdStream"
    r"|\bos\.(geteuid|getuid|fchmod|pread|pwrite|readv|writev|memfd_create|O_PATH)\b"
    r"|\bos\.O_(DIRECTORY|CLOEXEC|NOFOLLOW|BINARY)\b"
    r"|\bsignal\.(SIGHUP|SIGUSR|pthread_sigmask|SIGBREAK)"
    r"|\bsocket\.(AF_UNIX|SOCK_NONBLOCK|TCP_(?!NODELAY|MAXSEG))"
    r"|\btime\.(CLOCK_|clock_)"
)


@pytest.mark.parametrize("path", OTHERS, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_else_knows_one_system(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not [found.group() for found in KNOWS_ONE.finditer(text)]
