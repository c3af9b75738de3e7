"""Files of frp (https://github.com/fatedier/frp), frps.toml and frpc.toml, as ours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tunnel.ops.config.old import Table

if TYPE_CHECKING:
    from tunnel.ops.config.old import Old, Rows

_SERVER: Final = (
    "bindPort", "bindAddr", "vhostHTTPPort", "vhostHTTPSPort", "subDomainHost",
    "allowPorts", "proxyBindAddr",
)  # fmt: skip
_CLIENT: Final = ("serverAddr", "serverPort", "proxies", "visitors")
_PROXIES: Final = ("http_proxy", "socks5")
_LOCAL: Final = ("http2http", "http2https", "https2http", "https2https")
_HERE: Final = "127.0.0.1"
REASONS: Final = (
    (r"auth\.", "each user has a token of its own: `tunnel invite NAME`"),
    (r"user$", "the join line says who a client is"),
    (r"log\.", "the log is on stderr; `log` says its form"),
    (r"transport\.(tls|quic|kcp|protocol)|quicBindPort|kcpBindPort",
     "links are TLS 1.3 with a pinned key"),
    (r"transport\.", "links look after themselves"),
    (r"loginFailExit", "a wrong token ends the first start, nothing a later one"),
    (r"udpPacketSize", "datagrams of every size pass"),
    (r"proxyBindAddr", 'an entry says it: remote = "HOST:PORT"'),
    (r"tcpmuxHTTPConnectPort|sshTunnelGateway", "there is no such front end"),
    (r"proxies\.transport\.bandwidthLimit", "a user has a rate: [server.users.NAME]"),
    (r"proxies\.transport\.proxyProtocol", "a PROXY header is for ports"),
    (r"proxies\.transport\.", "every link is encrypted and not compressed"),
    (r"proxies\.loadBalancer\.groupKey", "a group is of one user"),
    (r"proxies\.healthCheck\.", "a check is every 5 s, and only of web services"),
    (r"proxies\.(loadBalancer|group)", "only names are served together"),
    (r"proxies\.plugin\.(crtPath|keyPath)", "the server ends TLS: its certificate"),
)  # fmt: skip


def is_one(document: dict[str, object]) -> bool:
    """Say whether a document is one of frp."""
    return any(key in document for key in (*_SERVER, *_CLIENT))


def tables(old: Old) -> list[Table]:
    """Return what is carried over."""
    found = []
    if any(old.take(key) is not None for key in _SERVER):
        found.append(_server(old))
    if any(old.take(key) is not None for key in ("serverAddr", "serverPort")) or (
        old.count("proxies")
    ):
        found.append(_client(old))
    for index in range(old.count("proxies")):
        for table in _proxy(old, index):
            if any(table.is_for_the_same(one) for one in found):
                old.leave("another proxy has its name already", "proxies", index)
            else:
                found.append(table)
    for index in range(old.count("visitors")):
        why = "[[client.be_exit]] there and [[client.reach]] with exit here do that"
        old.leave(why, "visitors", index)
    return found


# The server --------------------------------------------------------------------------


def _server(old: Old) -> Table:
    host, port = old.text("bindAddr"), old.text("bindPort") or "7000"
    table = Table("[server]")
    ranges = _ranges(old)
    most = old.text("maxPortsPerClient")
    table.rows = {
        "listen": _at(host, port) if host not in ("", "0.0.0.0") else port,  # noqa: S104
        "ports": next((one for one in ranges if "-" in one), ""),
        "limit": [f"ports={most}"] if most not in ("", "0") else [],
        "http": old.text("vhostHTTPPort"),
        "https": old.text("vhostHTTPSPort"),
        "domain": old.text("subDomainHost"),
        "client_ca": old.text("transport", "tls", "trustedCaFile"),
    }
    if ranges:
        may = " ".join(f"--may tcp:{one} --may udp:{one}" for one in ranges)
        table.notes.append(f"allowPorts is what a user may: tunnel invite NAME {may}")
    old.leave("an entry says it: remote", "proxyBindAddr")
    return table


def _ranges(old: Old) -> list[str]:
    """Return the ports of ``allowPorts``, as our rights have them."""
    found = old.take("allowPorts")
    ranges = []
    for one in found if isinstance(found, list) else []:
        if isinstance(one, dict):
            single = one.get("single")
            ranges.append(
                str(single) if single else f"{one.get('start')}-{one.get('end')}"
            )
    return ranges


def _at(host: str, port: str) -> str:
    return f"[{host}]:{port}" if ":" in host and "[" not in host else f"{host}:{port}"


# The client --------------------------------------------------------------------------


def _client(old: Old) -> Table:
    where = _at(old.text("serverAddr") or "SERVER", old.text("serverPort") or "7000")
    table = Table("[client]")
    table.notes.append("The line that `tunnel serve` or `tunnel invite` prints:")
    table.notes.append(f'to = "tunnel://NAME:TOKEN@{where}/#PIN"')
    table.rows["via"] = old.text("transport", "proxyURL")
    cert = [old.text("transport", "tls", one) for one in ("certFile", "keyFile")]
    table.rows["client_cert"] = cert if all(cert) else []
    return table


def _proxy(old: Old, index: int) -> list[Table]:
    keys = "proxies", index
    kind, name = old.text(*keys, "type"), old.text(*keys, "name")
    plugin = old.text(*keys, "plugin", "type")
    if old.take(*keys, "enabled") is False:
        old.leave("it is not enabled", *keys)
        return []
    if kind in ("tcp", "udp") and (row := _port(old, index, plugin)) is not None:
        return [Table(f"[[client.{kind}]]", name, row)]
    if kind in ("http", "https") and plugin in ("", *_LOCAL, "static_file"):
        return _named(old, index, kind, plugin, name)
    why = f"{kind} with {plugin} is not known" if plugin else f"{kind} is not known"
    if kind in ("stcp", "sudp", "xtcp"):
        why = "[[client.be_exit]] here and [[client.reach]] with exit there do that"
    elif plugin == "static_file":
        why = "[[client.http]] with a folder as target does that, under a name"
    elif plugin == "tls2raw" or plugin in _LOCAL:
        why = "[[client.http]] does that, under a name"
    old.leave(why, *keys)
    return []


def _port(old: Old, index: int, plugin: str) -> Rows | None:
    """Return the rows of a public port; None for what we do not have."""
    keys = "proxies", index
    if plugin not in ("", "unix_domain_socket", *_PROXIES):
        return None
    rows: Rows = {"remote": old.text(*keys, "remotePort") or "0"}
    if plugin == "unix_domain_socket":
        rows["target"] = f"unix:{old.text(*keys, 'plugin', 'unixPath')}"
    elif plugin in _PROXIES:
        rows["target"] = "socks"
        user = _user(old, index, "plugin")
        rows["auth"] = [user] if user else []
        if not user:
            rows["remote"] = f"{_HERE}:{rows['remote']}"
    else:
        rows["target"] = _target(old, index)
    rows["proxy"] = old.text(*keys, "transport", "proxyProtocolVersion")
    return rows


def _named(old: Old, index: int, kind: str, plugin: str, about: str) -> list[Table]:
    """Return the tables of each name and path of a web service."""
    keys = "proxies", index
    rows: Rows = {}
    if plugin == "static_file":
        rows["target"] = old.text(*keys, "plugin", "localPath")
        if old.text(*keys, "plugin", "stripPrefix"):
            old.leave("a folder is served from /", *keys, "plugin", "stripPrefix")
    elif plugin:
        secure = plugin.endswith("2https")
        where = old.text(*keys, "plugin", "localAddr")
        rows["target"] = f"https://{where}" if secure else where
        rows["insecure"] = secure
    else:
        rows["target"] = _target(old, index)
    rows["group"] = old.text(*keys, "loadBalancer", "group")
    check = old.text(*keys, "healthCheck", "type")
    if check:
        rows["check"] = old.text(*keys, "healthCheck", "path") or "tcp"
    ends_tls = kind == "http" or plugin
    if ends_tls:
        rows |= _web(old, index)
    names = [*old.texts(*keys, "subdomain"), *old.texts(*keys, "customDomains")]
    paths = [one for one in old.texts(*keys, "locations") if ends_tls]
    head = "[[client.http]]" if ends_tls else "[[client.https]]"
    return [
        Table(head, about, {"name": one, **rows, "path": "" if path == "/" else path})
        for one in names
        for path in paths or ["/"]
    ]


def _web(old: Old, index: int) -> Rows:
    """Return what is done to requests and answers, of the service or of its plugin."""
    keys = "proxies", index
    rows: Rows = {"auth": _user(old, index) or _user(old, index, "plugin")}
    places: list[tuple[str | int, ...]] = [keys, (*keys, "plugin")]
    for at in places:
        if host := old.text(*at, "hostHeaderRewrite"):
            rows["host"] = host
        for theirs, ours in (
            ("requestHeaders", "header"),
            ("responseHeaders", "response_header"),
        ):
            fields = old.table(*at, theirs, "set")
            edits = [f"+{one}: {old.text(*at, theirs, 'set', one)}" for one in fields]
            if edits:
                rows[ours] = edits
    return rows


def _user(old: Old, index: int, *more: str) -> str:
    keys: tuple[str | int, ...] = ("proxies", index, *more)
    pairs = (("httpUser", "httpPassword"), ("username", "password"))
    for user, password in pairs:
        found = old.text(*keys, user), old.text(*keys, password)
        if all(found):
            return ":".join(found)
    return ""


def _target(old: Old, index: int) -> str:
    keys = "proxies", index
    return _at(old.text(*keys, "localIP") or _HERE, old.text(*keys, "localPort"))
