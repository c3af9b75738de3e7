"""``tunnel config migrate``: what frp and rathole say is carried over, or told."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tunnel.errors import ConfigError
from tunnel.ops import entry_syntax as syntax
from tunnel.ops.config import frp, rathole
from tunnel.ops.config.lines import lines_of
from tunnel.ops.config.migrate import migrate
from tunnel.ops.config.old import Old
from tunnel.ops.config.place import Place
from tunnel.ops.config.read import Config, parse_config

FRPS = """\
bindAddr = "10.1.2.3"
bindPort = 7100
vhostHTTPPort = 8080
vhostHTTPSPort = 8443
subDomainHost = "t.test"
allowPorts = [{ single = 4000 }, { start = 5000, end = 5100 }]
maxPortsPerClient = 9
kcpBindPort = 7100
auth.token = "not to be told"
transport.tls.force = true
[[httpPlugins]]
name = "asks"
"""
FRPC = """\
serverAddr = "t.test"
serverPort = 7100
auth.token = "not to be told"
transport.proxyURL = "socks5://proxy.test:1080"
[[proxies]]
name = "shell"
type = "tcp"
localIP = "192.0.2.7"
localPort = 22
remotePort = 6022
transport.proxyProtocolVersion = "v2"
transport.useCompression = true
[[proxies]]
name = "resolver"
type = "udp"
localPort = 53
remotePort = 6053
[[proxies]]
name = "shop"
type = "http"
localPort = 8000
subdomain = "shop"
customDomains = ["shop.test"]
locations = ["/", "/cart"]
httpUser = "me"
httpPassword = "p,w"
hostHeaderRewrite = "inner.test"
requestHeaders.set.x-by = "frp"
responseHeaders.set.x-to = "all"
healthCheck.type = "http"
healthCheck.path = "/alive"
healthCheck.intervalSeconds = 9
loadBalancer.group = "shops"
[[proxies]]
name = "safe"
type = "https"
localPort = 9443
customDomains = ["safe.test"]
[[proxies]]
name = "docker"
type = "tcp"
remotePort = 6003
[proxies.plugin]
type = "unix_domain_socket"
unixPath = "/run/d.sock"
[[proxies]]
name = "proxy"
type = "tcp"
remotePort = 6004
[proxies.plugin]
type = "socks5"
username = "a"
password = "b"
[[proxies]]
name = "inner"
type = "https"
customDomains = ["inner.test"]
[proxies.plugin]
type = "https2https"
localAddr = "127.0.0.1:444"
crtPath = "c.crt"
[[proxies]]
name = "again"
type = "http"
localPort = 1
customDomains = ["inner.test"]
[[proxies]]
name = "hidden"
type = "stcp"
secretKey = "not to be told"
localPort = 22
[[visitors]]
name = "visits"
type = "stcp"
secretKey = "not to be told"
"""
RATHOLE = """\
[server]
bind_addr = "0.0.0.0:2333"
default_token = "not to be told"
[server.services.shell]
bind_addr = "0.0.0.0:5202"
[client]
remote_addr = "t.test:2333"
default_token = "not to be told"
[client.transport]
type = "noise"
[client.services.shell]
local_addr = "127.0.0.1:22"
[client.services.names]
type = "udp"
local_addr = "127.0.0.1:53"
"""


def migrated(tmp_path: Path, text: str) -> tuple[Config, str, list[str]]:
    """Return what a file becomes, read again, and what was left of it."""
    path = tmp_path / "old.toml"
    path.write_text(text)
    made, left = migrate(path)
    config = parse_config(made, Place(Path("tunnel.toml"), None))
    return config, made, [one.removeprefix(f"{path}:") for one in left]


def test_a_server_of_frp(tmp_path: Path) -> None:
    config, made, left = migrated(tmp_path, FRPS)
    assert config.server is not None
    assert {key: one.words for key, one in config.server.flags.items()} == {
        "listen": ("10.1.2.3:7100",),
        "ports": ("5000-5100",),
        "limit": ("ports=9",),
        "http": ("8080",),
        "https": ("8443",),
        "domain": ("t.test",),
    }
    assert "--may tcp:4000 --may udp:4000 --may tcp:5000-5100" in made
    assert [one.split(": ")[:2] for one in left] == [
        ["8", "kcpBindPort"],
        ["9", "auth.token"],
        ["10", "transport.tls.force"],
        ["12", "httpPlugins.name"],
    ]
    assert "not to be told" not in made + "".join(left)


def test_a_client_of_frp(tmp_path: Path) -> None:
    config, made, left = migrated(tmp_path, FRPC)
    assert config.client is not None
    assert config.client.flags["via"].words == ("socks5://proxy.test:1080",)
    web = (
        "127.0.0.1:8000,auth=me:p%2Cw,host=inner.test,header=+x-by: frp,"
        "response-header=+x-to: all,check=/alive,group=shops"
    )
    tcp = [
        syntax.parse_tcp("6022=192.0.2.7:22,proxy=v2"),
        syntax.parse_tcp("6003=unix:/run/d.sock"),
        syntax.parse_tcp("6004=socks,auth=a:b"),
    ]
    named = [f"{name}={web}{path}" for name in ("shop", "shop.test")
        for path in ("", ",path=/cart")]  # fmt: skip
    http = map(syntax.parse_http, [*named, "inner.test=https://127.0.0.1:444,insecure"])
    entries = [one.entry for one in config.client.entries]
    assert entries == [
        *tcp,
        syntax.parse_udp("6053=127.0.0.1:53"),
        *http,
        syntax.parse_https("safe.test=127.0.0.1:9443"),
    ]
    assert "tunnel://NAME:TOKEN@t.test:7100/#PIN" in made
    assert "not to be told" not in made + "".join(left)
    lines = [one.split(": ")[0] for one in left]
    assert lines == ["3", "12", "32", "61", "62", "67", "72"]


def test_both_sides_of_rathole(tmp_path: Path) -> None:
    config, made, left = migrated(tmp_path, RATHOLE)
    assert config.server is not None
    assert config.client is not None
    assert config.server.flags["listen"].words == ("0.0.0.0:2333",)
    assert [one.entry for one in config.client.entries] == [
        syntax.parse_tcp("0.0.0.0:5202=127.0.0.1:22"),
        syntax.parse_udp("0=127.0.0.1:53"),
    ]
    assert "--may tcp:5202" in made
    assert "bind_addr of names in the server's file" in made
    assert [one.split(": ")[0] for one in left] == ["3", "8", "10"]
    assert "not to be told" not in made + "".join(left)


def test_each_side_of_rathole_alone(tmp_path: Path) -> None:
    server, client = RATHOLE.split("[client]")
    _, _, left = migrated(tmp_path, server)
    assert any('remote = "0.0.0.0:5202"' in one for one in left)
    config, made, _ = migrated(tmp_path, f"[client]{client}")
    assert config.server is None
    assert "remote = … is bind_addr of shell" in made


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[common]\nserver_addr = x\n", "frp's older INI is not read"),
        ("a = 1\n", "it is neither frp's nor rathole's"),
        ('[server]\nports = "5-6"\n', "it is neither frp's nor rathole's"),
    ],
)
def test_what_is_of_neither_is_refused(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "old.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as raised:
        migrate(path)
    (fault,) = raised.value.faults
    assert why in fault


KEYS = sorted(
    {
        str(key)
        for text in (FRPS, FRPC, RATHOLE)
        for path in lines_of(text)
        for key in path
        if isinstance(key, str)
    }
)
VALUES = st.recursive(
    st.sampled_from(["tcp", "http", "socks5", "", "a\nb", 0, -1, 1.5, True]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5)
    ),
    max_leaves=12,
)


@given(document=st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=6))
@example(document={"allowPorts": "tcp", "serverAddr": "a\nb"})
@settings(deadline=None)
def test_no_document_of_theirs_is_too_odd(document: dict[str, object]) -> None:
    for kind in (frp, rathole):
        if kind.is_one(document):
            old = Old(Path("old.toml"), document, {}, kind.REASONS)
            text = "".join(one.text() for one in kind.tables(old))
            assert all(map(str.isprintable, old.left()))
            tomllib.loads(f"x = 1\n{text}")
