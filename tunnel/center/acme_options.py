"""Which certificate authority a server asks."""

from __future__ import annotations

import importlib.util
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from tunnel.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

LETS_ENCRYPT: Final = "https://acme-v02.api.letsencrypt.org/directory"


@dataclass(frozen=True, slots=True)
class AcmeOptions:
    """Which authority is asked for certificates of published names."""

    mail: str
    """Of who answers for the account."""
    directory: str = LETS_ENCRYPT
    """The authority's URL."""
    ca: Path | None = None
    """The authorities that are trusted about its own certificate; None for the
    system's."""
    hook: Path | None = None
    """A program for dns-01, called ``present|cleanup NAME VALUE``; None: no wildcards.
    """

    @property
    def is_public(self) -> bool:
        """Whether it signs names of the public DNS alone; one's own may sign others."""
        return self.directory == LETS_ENCRYPT


_MAIL: Final = re.compile(r"[^@\s,<>]+@[^@\s,<>]+\.[^@\s,<>]+")


def acme_options(
    mail: str | None,
    directory: str | None,
    ca: Path | None,
    hook: Path | None,
    *,
    has_https: bool,
) -> AcmeOptions | None:
    """Return the options that flags, or keys of a file, say; None without a ``mail``.

    Raises:
        UsageError: they cannot be meant, a file of them cannot be used, or the library
            is not installed.
    """
    if mail is None:
        if directory or ca or hook:
            why = "--acme-directory, --acme-ca and --acme-hook are about --acme"
            raise UsageError(why, fix="--acme you@example.net")
        return None
    if not has_https:
        why = "--acme gets certificates, but there is no port to use them on"
        raise UsageError(why, fix="--https 443")
    if not _MAIL.fullmatch(mail):
        what = f"--acme {mail!r} is no mail address"
        raise UsageError(what, fix="--acme you@example.net")
    url = LETS_ENCRYPT if directory is None else directory
    if urlsplit(url).scheme != "https" or not urlsplit(url).hostname:
        what = f"--acme-directory {url!r} is not the URL of an authority"
        raise UsageError(what, "it begins with https://", f"as {LETS_ENCRYPT}")
    if ca is not None and not os.access(ca, os.R_OK):
        raise UsageError(
            f"--acme-ca: cannot read {ca}", fix="a PEM file of authorities"
        )
    if hook is not None and not (hook.is_file() and os.access(hook, os.X_OK)):
        what = f"--acme-hook: {hook} cannot be run"
        raise UsageError(what, fix="the path of an executable file")
    if importlib.util.find_spec("acme") is None:
        fix = "pip install 'tunnel[acme]'"
        raise UsageError("--acme needs the package acme", fix=fix)
    return AcmeOptions(mail, url, ca, hook and hook.absolute())
