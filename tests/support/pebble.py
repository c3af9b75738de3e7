"""A certificate authority on loopback: pebble, and the DNS that it asks."""

from __future__ import annotations

import json
import ssl
import urllib.request
from typing import TYPE_CHECKING, Final

import trustme
from support.processes import WAIT_S, free_port, program

if TYPE_CHECKING:
    from pathlib import Path

    from support.processes import Machine, Program

HOST: Final = "127.0.0.1"


class Pebble:
    """The authority, and the ports where it looks.

    Args:
        machine: ends the programs.
        folder: for its files.
        life_s: of its certificates, seconds.
        rejects: percentage of good nonces that it refuses.
    """

    def __init__(
        self, machine: Machine, folder: Path, life_s: int = 86_400, rejects: int = 0
    ) -> None:
        self._machine = machine
        self._folder = folder
        self._rejects = rejects
        self.http_port, self.https_port = free_port(), free_port()
        dns, self._dns_control, listen, control = (free_port() for _ in range(4))
        self._dns = f"{HOST}:{dns}"
        self._control = control
        self.directory = f"https://{HOST}:{listen}/dir"
        own = trustme.CA()
        leaf = own.issue_cert(HOST)
        self.ca = folder / "pebble-ca.pem"
        own.cert_pem.write_to_path(self.ca)
        leaf.cert_chain_pems[0].write_to_path(folder / "pebble.pem")
        leaf.private_key_pem.write_to_path(folder / "pebble.key")
        config = {
            "listenAddress": f"{HOST}:{listen}",
            "managementListenAddress": f"{HOST}:{control}",
            "certificate": str(folder / "pebble.pem"),
            "privateKey": str(folder / "pebble.key"),
            "httpPort": self.http_port,
            "tlsPort": self.https_port,
            "ocspResponderURL": "",
            "externalAccountBindingRequired": False,
            "certificateValidityPeriod": life_s,
        }
        (folder / "pebble.json").write_text(json.dumps({"pebble": config}))
        server = program("pebble-challtestsrv")
        self.dns = machine.start(
            server, "-dns01", self._dns, "-http01", "", "-https01", "",
            "-tlsalpn01", "", "-management", f"{HOST}:{self._dns_control}",
            "-defaultIPv4", HOST, "-defaultIPv6", "",
        )  # fmt: skip
        self.process: Program
        self.start()

    def start(self) -> None:
        """Start it, anew after it was ended: it knows nobody then."""
        self.process = self._machine.start(
            program("pebble"), "-config", str(self._folder / "pebble.json"),
            "-dnsserver", self._dns, "-strict",
            env={
                "PEBBLE_VA_NOSLEEP": "1",
                "PEBBLE_WFE_NONCEREJECT": str(self._rejects),
            },
        )  # fmt: skip
        self.process.out.wait("ACME directory available")

    @property
    def flags(self) -> tuple[str, ...]:
        """What ``tunnel serve`` needs to ask it, and to be looked at."""
        return (
            "--https", f"{HOST}:{self.https_port}",
            "--acme", "me@example.net",
            "--acme-directory", self.directory,
            "--acme-ca", str(self.ca),
        )  # fmt: skip

    def context(self) -> ssl.SSLContext:
        """Return what trusts its certificates."""
        url = f"https://{HOST}:{self._control}/roots/0"
        trusting = ssl.create_default_context(cafile=str(self.ca))
        with urllib.request.urlopen(url, context=trusting, timeout=WAIT_S) as answer:
            root = answer.read().decode()
        return ssl.create_default_context(cadata=root)

    def orders(self) -> int:
        """Return how often somebody ordered."""
        return self.process.out.count("Added order")

    def asked_about(self, name: str) -> bool:
        """Say whether it ever heard of a name."""
        return any(name in line for line in self.process.out.all())

    def answer_txt(self, verb: str, record: str, value: str = "") -> None:
        """Have the DNS answer TXT with a value: ``set-txt`` or ``clear-txt``."""
        url = f"http://{HOST}:{self._dns_control}/{verb}"
        said = json.dumps({"host": record, "value": value}).encode()
        with urllib.request.urlopen(url, said, timeout=WAIT_S) as answer:
            assert answer.status == 200

    @property
    def dns_control(self) -> str:
        """The URL by which records are made."""
        return f"http://{HOST}:{self._dns_control}"
