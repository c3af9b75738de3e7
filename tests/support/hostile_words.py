"""Parsers of what users, their files and their own processes say."""

from __future__ import annotations

import os
import tomllib
from contextlib import suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final, NamedTuple

from tunnel.access.host_certificates import facts_of
from tunnel.access.identity import (
    _load_identity,
    _make_identity,
    pin_of,
)
from tunnel.access.join import parse_join
from tunnel.access.limits import parse_limits
from tunnel.access.months import Months
from tunnel.access.networks import parse_network
from tunnel.access.right_words import FORMS, parse_right
from tunnel.access.user_file import read_users, write_users
from tunnel.addresses import Address, decode_host, host_of, parse_end
from tunnel.errors import ConfigError, StateError, TlsError, TunnelError, UsageError
from tunnel.link.upstream_proxy import UpstreamProxy
from tunnel.net.lookup import HostsFile
from tunnel.ops.config.migrate import carried_over
from tunnel.ops.config.place import Place
from tunnel.ops.config.read import parse_config
from tunnel.ops.control import ask, service
from tunnel.ops.control.live import Top
from tunnel.ops.control.status_text import listed, ps_lines, status_lines
from tunnel.ops.control.why_text import why_line, why_lines
from tunnel.ops.entry_syntax import (
    parse_exit,
    parse_http,
    parse_https,
    parse_reach,
    parse_socks,
    parse_tcp,
    parse_udp,
)
from tunnel.ops.flags import seconds
from tunnel.ops.proxy_variables import is_exempt, is_here, proxy_of
from tunnel.ops.serve_flags import _port_range
from tunnel.ops.texts import shown
from tunnel.proto.proofs import verifier_of
from tunnel.redaction import masked
from tunnel.words import bare, printable

if TYPE_CHECKING:
    from collections.abc import Callable

TOKEN: Final = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"
VERIFIER: Final = verifier_of("anna", TOKEN)
_FILE: Final = Path("/nowhere/tunnel.toml")


class Parser(NamedTuple):
    """One parser."""

    feed: Callable[[bytes], object]
    may_raise: tuple[type[BaseException], ...]
    """What its callers are promised; everything else is a fault."""
    seeds: tuple[bytes, ...]
    """Good inputs: who looks for bad ones begins with these."""


def _text(data: bytes) -> str:
    """As a command line has it: what is no UTF-8 becomes lone surrogates."""
    return data.decode("utf-8", "surrogateescape")


def _of_file(data: bytes) -> str:
    return data.decode("utf-8", "replace")


@cache
def _folder() -> TemporaryDirectory[str]:
    """Return the folder of files that are read by their names; it goes at exit."""
    shared = "/dev/shm"
    return TemporaryDirectory(dir=shared if os.path.isdir(shared) else None)


def _written(data: bytes, name: str) -> Path:
    path = Path(_folder().name, name)
    path.write_bytes(data)
    path.chmod(0o600)
    return path


# Words of a command line and of variables --------------------------------------------


def _address(data: bytes) -> None:
    decode_host(data)
    text = _text(data)
    printable(text)
    host_of(text)
    host_of(text, zone=True)
    for read in (Address.parse, parse_end, UpstreamProxy.parse):
        with suppress(UsageError):
            read(text)


def _entry(data: bytes) -> None:
    text = _text(data)
    for read in (
        parse_tcp, parse_udp, parse_http, parse_https, parse_exit, parse_reach,
        parse_socks,
    ):  # fmt: skip
        with suppress(UsageError):
            read(text)


def _web_words(data: bytes) -> None:
    parse_http("web=127.0.0.1:1," + _text(data))


def _numbers(data: bytes) -> None:
    text = _text(data)
    for read in (seconds, lambda _, text: _port_range(text)):
        with suppress(UsageError):
            read("--flag", text)


def _variables(data: bytes) -> None:
    text = _text(data)
    for host in ("a.test", "10.0.0.1"):
        is_exempt(text, host, 443)
    is_here(text)
    for read in (
        parse_network,
        lambda url: proxy_of({"https_proxy": url}, "a.test", 1),
    ):
        with suppress(UsageError):
            read(text)


def _shown(data: bytes) -> None:
    """Whatever it is, it is one line."""
    text = _text(data)
    line = shown(text)
    assert line.isprintable()
    masked(text.split(" "))
    bare(text)


# Files -------------------------------------------------------------------------------


def _users(data: bytes) -> None:
    """What is read is written so that it is read again."""
    users = read_users(_of_file(data), "f")
    again = read_users(write_users(users), "f")
    assert again.keys() == users.keys()


def _config(data: bytes) -> None:
    parse_config(_of_file(data), Place(_FILE, None))


def _migrated(data: bytes) -> None:
    text, _ = carried_over(_FILE, _of_file(data))
    tomllib.loads(text)


def _months(data: bytes) -> None:
    _written(data, "months.json")
    Months(Path(_folder().name), lambda: "2031-05").bytes_of("anna")


def _hosts(data: bytes) -> None:
    HostsFile(str(_written(data, "hosts"))).find("a.test")


@cache
def _identity() -> str:
    return _make_identity()


def der() -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding
    from cryptography.x509 import load_pem_x509_certificate

    return load_pem_x509_certificate(_identity().encode()).public_bytes(Encoding.DER)


def _certificate(data: bytes) -> None:
    """As a server shows it, and as a file may have it."""
    from base64 import encodebytes

    with suppress(TlsError):
        pin_of(data)
    lines = encodebytes(data)
    pem = b"-----BEGIN CERTIFICATE-----\n" + lines + b"-----END CERTIFICATE-----\n"
    with suppress(ValueError):
        facts_of(pem)


# Processes ---------------------------------------------------------------------------


def _answer(data: bytes) -> None:
    """It may be of another version: whatever it has is shown."""
    answer = ask._read(data, "serve-1")
    [*ps_lines([answer]), *status_lines(answer), *why_lines(answer, "serve-1")]
    Top(lambda: answer).look()
    for one in listed(answer, "listed"):
        why_line(one, "serve-1")


_ENTRIES: Final = (
    b"2222=127.0.0.1:22,proxy=v2",
    b"shop=8000,auth=a:b,host=rewrite,allow=10.0.0.0/8,requests=10/s,max-body=1M",
    b"6000-6010=127.0.0.1:6000-6010",
    b"0=socks,auth=a:b,network=10.0.0.0/8",
    b"home,network=10.0.0.0/8",
    b"x=https://nas.lan:8443,insecure,expires=2h,path=/a,strip,group=g,check=/h",
)
_WORDS: Final = (
    b"auth=a:b,auth-header=keep,cors,host=a.test:80,header=+X-A:b,header=-Cookie",
    b"response-header=-Server,allow=10.0.0.0/8",
    b"deny=10.0.0.1,allow=2001:db8::/32,expires=2h,requests=10/s,max-body=10M",
    b"path=/a/b,strip,group=blue,check=/healthz",
    b"check=tcp,host=rewrite,expires=30d,requests=100/h,max-body=1g",
)
_CONFIG: Final = (
    b'[server]\nlisten = 7443\nlimit = ["ports=16"]\nidle = "2h"\nmax_head = 65536\n'
    b'ports = "20000-20999"\nhttp = "127.0.0.1:80"\ndomain = "a.test"\n'
    b"[server.users.anna]\nverifier = \"" + VERIFIER.render().encode() + b"\"\n"
    b'may = ["tcp:2200"]\nrate = "5MB/s"\nexpires = 2030-01-01T00:00:00Z\n',
    b'[client]\nto = "tunnel://anna:' + TOKEN.encode() + b'@a.test:7443/#'
    + TOKEN.encode() + b'"\n[[client.tcp]]\nremote = 2222\ntarget = 22\nproxy = "v2"\n'
    b'[[client.http]]\nname = "shop"\ntarget = 8000\nrequests = "10/s"\n'
    b'allow = ["10.0.0.0/8"]\nheader = "+X-A: b"\n',
    b'[[client.reach]]\nlisten = 5432\ntarget = "db.lan:5432"\n[[client.be_exit]]\n'
    b'name = "home"\nnetwork = ["10.0.0.0/8"]\n[[client.socks]]\nauth = "a:b"\n',
)  # fmt: skip
_FRP: Final = (
    b'bindPort = 7000\nvhostHTTPPort = 80\nsubDomainHost = "a.test"\n'
    b"allowPorts = [{start = 1, end = 9}, {single = 3}]\nmaxPortsPerClient = 5\n",
    b'serverAddr = "a.test"\nserverPort = 7000\nauth.token = "x"\n[[proxies]]\n'
    b'name = "w"\ntype = "http"\nlocalPort = 80\ncustomDomains = ["b.test"]\n'
    b'requestHeaders.set.x-a = "b"\nlocations = ["/", "/a"]\nhttpUser = "a"\n'
    b'httpPassword = "b"\n',
    b'[[proxies]]\nname = "s"\ntype = "tcp"\nremotePort = 22\n[proxies.plugin]\n'
    b'type = "unix_domain_socket"\nunixPath = "/run/x"\n[[visitors]]\nname = "v"\n',
)
_RATHOLE: Final = (
    b'[server]\nbind_addr = "0.0.0.0:2333"\n[server.services.ssh]\ntoken = "x"\n'
    b'bind_addr = "0.0.0.0:22"\n',
    b'[client]\nremote_addr = "a.test:2333"\n[client.transport.tcp]\nproxy = "x"\n'
    b'[client.services.ssh]\ntype = "udp"\nlocal_addr = "127.0.0.1:22"\n',
)
_ANSWER: Final = (
    b'{"done": {"name": "up-1", "role": "up", "began_at": 1.5, "state": "linked", '
    b'"links": [{"id": "1", "peer": "a:1", "linked_at": 2, "rtt_ms": 3.5}], "passed": '
    b'{"received_bytes": 5, "sent_per_s": 9.5}, "faults": [{"at": 1, "text": "a b"}]}}',
    b'{"done": {"id": "1:2", "end": "opener", "now": "line", "minute": {"line": 90.5}, '
    b'"line": {"rtt_ms": 5, "busy_s": 2, "rwnd_limited_s": 1}, "help": "x", "listed": '
    b'[{"id": "1", "minute": {"a": 1}}], "connections": [{"id": "1", "passed": {}}]}}',
    b'{"failed": {"what": "a", "cause": "b", "fix": "c", "status": 2}}',
)

WORDS: Final = {
    "join lines": Parser(
        lambda data: parse_join(_text(data)),
        (UsageError,),
        (f"tunnel://anna:{TOKEN}@[::1]:7443/#{TOKEN}".encode(),
         f"tunnel+plain://anna:{TOKEN}@a.test".encode()),
    ),
    "files of users": Parser(
        _users,
        (StateError,),
        (
            f'[users.anna]\nverifier = "{VERIFIER.render()}"\n'
            'may = ["tcp:2200", "ports:16"]\nlimits = ["rate=5MB/s"]\n'
            "expires = 2030-01-01T00:00:00Z\n".encode(),
        ),
    ),
    "words of limits": Parser(
        lambda data: parse_limits(_text(data).split(" ")),
        (UsageError,),
        (b"rate=5MB/s connections=100", b"month=10GB opens=10/s sessions=4"),
    ),
    "words of rights": Parser(
        lambda data: parse_right(_text(data)),
        (UsageError,),
        tuple(words.encode() for words in FORMS.values()),
    ),
    "addresses": Parser(
        _address,
        (),
        (b"[fe80::1%eth0]:80", b"a.test:80", b"unix:/run/x", b"http://a:b@c.test:3128"),
    ),
    "entries": Parser(_entry, (), _ENTRIES),
    "web words": Parser(_web_words, (UsageError,), _WORDS),
    "durations": Parser(_numbers, (), (b"30", b"5m", b"30d", b"20000-20999", b"80")),
    "variables": Parser(
        _variables,
        (),
        (b"a.test, .b.test:443,10.0.0.0/8 *", b"http://a:b@c.test:3128", b"[::1]:443"),
    ),
    "texts": Parser(
        _shown,
        (),
        (f"to tunnel://anna:{TOKEN}@a.test auth=a:b".encode(), b"--auth a:b 'x'",
         b"--header +X-A:b a:b@c.test \x1b[1m"),
    ),
    "configurations": Parser(_config, (ConfigError,), _CONFIG),
    "of frp": Parser(_migrated, (ConfigError,), _FRP),
    "of rathole": Parser(_migrated, (ConfigError,), _RATHOLE),
    "months": Parser(
        _months, (), (b'{"month": "2031-05", "bytes": {"anna": 5, "b": 1}}',)
    ),
    "hosts": Parser(
        _hosts, (), (b"127.0.0.1 a.test b\n::1 a.test # x\nfe80::1%lo c\n",)
    ),
    "certificates": Parser(_certificate, (), (der(),)),
    "identities": Parser(
        lambda data: _load_identity(_written(data, "identity.pem")),
        (StateError,),
        (_identity().encode(),),
    ),
    "questions": Parser(
        service._read,
        (UsageError,),
        (b'{"do": "users.ls", "with": {"name": "a", "may": ["all"], "n": 1.5}}\n',),
    ),
    "answers": Parser(_answer, (TunnelError,), _ANSWER),
}  # fmt: skip
"""What parses words and files of a user."""
