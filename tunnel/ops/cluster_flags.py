"""What ``tunnel serve`` is told about the cluster that it is a node of."""

from __future__ import annotations

import re
import secrets
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tunnel.addresses import Address
from tunnel.center.cluster.secret import MAX_NODE_NAME, read_secret, secret_of
from tunnel.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from tunnel.access.identity import Identity
    from tunnel.center.cluster.cluster import Cluster
    from tunnel.center.cluster.redis import RedisDirectory
    from tunnel.ops.serve_flags import ServeFlags

_START_BYTES: Final = 4
"""What each start adds to a node's name: who had it before does not come back."""
_MOST: Final = MAX_NODE_NAME - 1 - 2 * _START_BYTES
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


@dataclass(frozen=True)
class ClusterOptions:
    """Of which cluster a server is a node, and how the others find it."""

    url: str
    """Of Redis, with its password."""
    node: str
    advertise: Address
    secret_file: Path | None
    """None: that of the state folder."""
    ca: Path | None

    def join(
        self, state: Path, identity: Identity | None
    ) -> tuple[Cluster, RedisDirectory]:
        """Return this node, and its directory, which the caller runs.

        Args:
            state: has the secret, where no other file does; made at the first time.
            identity: of all nodes.

        Raises:
            StateError: the file of the secret cannot be used.
            UsageError: the URL cannot be used, or what reads it is not installed.
        """
        from tunnel.center.cluster.cluster import Cluster

        try:
            from tunnel.center.cluster.redis import RedisDirectory
        except ImportError as error:
            what = f"--cluster needs {error.name}, which is not installed"
            raise UsageError(what, fix="pip install 'tunnel[cluster]'") from error
        named = self.secret_file
        secret = secret_of(state) if named is None else read_secret(named)
        name = f"{self.node}.{secrets.token_hex(_START_BYTES)}"
        key = secret.key_for("directory")
        directory = RedisDirectory(self.url, name, str(self.advertise), key, ca=self.ca)
        pin = identity.pin if identity is not None else None
        return Cluster(directory, secret, pin), directory


def cluster_options(flags: ServeFlags) -> ClusterOptions | None:
    """Return what the flags say of a cluster; None without one.

    Raises:
        UsageError: something is missing, or cannot be.
    """
    if flags.cluster is None:
        for word in ("node", "advertise", "cluster_secret_file", "cluster_ca"):
            if getattr(flags, word) is not None:
                name = word.replace("_", "-")
                raise UsageError(f"--{name} is of a node, and there is no --cluster")
        return None
    if flags.workers != 1:
        raise UsageError(
            "--workers is not possible with --cluster",
            fix="several nodes on one machine, each with a --listen of its own",
        )
    if flags.advertise is None:
        raise UsageError(
            "--cluster needs to know where other nodes reach this one",
            "they dial the address for links",
            "--advertise HOST:PORT",
        )
    node = flags.node or socket.gethostname().partition(".")[0]
    if not _NAME.fullmatch(node) or len(node) > _MOST:
        raise UsageError(
            f"{node!r} is not the name of a node",
            f"it has letters, digits, - and _, {_MOST} at most",
            "--node NAME",
        )
    where = Address.parse(flags.advertise)
    return ClusterOptions(
        flags.cluster, node, where, flags.cluster_secret_file, flags.cluster_ca
    )
