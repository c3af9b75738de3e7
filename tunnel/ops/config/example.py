"""A configuration file with every key, each with what it does; all of it is a comment.

The value of a key that has a default is the default. ``docs/configuration.md`` is made
of this text.
"""

from __future__ import annotations

import textwrap
from typing import Final

WIDTH: Final = 88
_RUN: Final = (
    ("drain", '"8s"', "How long running connections may go on after SIGTERM."),
    ("idle", '"0"', "Connections that carried nothing for so long end; 0: never."),
    ("udp_idle", '"180s"', "The same for UDP flows. Give both ends the same."),
    ("dead_after", '"150s"',
     "Visitors, apps and targets whose machine is silent for so long are reset."),
    ("max_head", "131072", "Bytes that the head of an HTTP message may have."),
    ("max_fields", "300", "Header fields that it may have."),
    ("body_timeout", '"0"', "Requests whose body pauses for so long end; 0: never."),
    ("log", '"logfmt"', "Form of the log on stderr: logfmt, json or terminal."),
    ("log_file", '"/var/log/tunnel/tunnel.log"',
     "Write the log to this file instead; SIGUSR1 and SIGHUP open it anew."),
    ("access_log", '"/var/log/tunnel/access.log"',
     "Write a line for each visitor, at its end; -: where the log goes."),
    ("metrics", '"127.0.0.1:9100"',
     "[HOST:]PORT for Prometheus, with /livez and /readyz; it asks for no password."),
    ("dashboard", '"127.0.0.1:4040"', "[HOST:]PORT of a page that shows what happens."),
    ("dashboard_auth", '"a-token-of-yours"',
     "The token of that page; without it each start makes another."),
    ("dashboard_auth_file", '"dashboard.token"', "A file with it."),
)  # fmt: skip
_PLACES: Final = (
    ("name", '"shop"', "Host name; without a dot one of the server's domain."),
    ("target", '"127.0.0.1:8000"',
     "[HOST:]PORT or unix:/path of the service; of http also https://HOST:PORT, or a "
     "folder."),
    ("allow", '["192.0.2.0/24"]', "Where visitors may come from; others get 403."),
    ("deny", '["192.0.2.66"]', "Where they may not come from."),
    ("expires", '"2h"', "How long it is published; then 410."),
    ("group", '"shops"', "Serve the name with other clients that say the same group."),
    ("check", '"/healthz"',
     "Ask the target for this every 5 s (tcp: connect), and lead nobody there while it "
     "fails."),
)  # fmt: skip
_WEB: Final = (
    *_PLACES,
    ("auth", '"USER:PASSWORD"', "What visitors need. The file is mode 0600 then."),
    ("auth_file", '"shop.auth"', "A file with it."),
    ("auth_header", '"keep"', "The target gets the Authorization of visitors too."),
    ("cors", "false", "CORS preflights, which come without a password, need none."),
    ("host", '"rewrite"',
     "The Host that the target is asked for: a name, or rewrite for its own address."),
    ("header", '["+X-From: tunnel", "-X-Debug"]',
     "+NAME:VALUE sets a field of requests, -NAME removes it."),
    ("response_header", '["-Server"]', "The same for answers."),
    ("ca", '"ca.pem"', "Authorities that are trusted about an https:// target."),
    ("pin", '"sha256//47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU"',
     "Of the public key of an https:// target."),
    ("insecure", "false", "Believe any certificate of an https:// target."),
    ("protocol", '"h2c"',
     "What the target speaks if not HTTP/1.1: h2c, or h2 if it is https://."),
    ("list", "false", "List folders without index.html."),
    ("inspect", "false", "Keep the requests for the page and `tunnel tail`."),
    ("requests", '"10/s"', "How many one address may send; others get 429."),
    ("max_body", '"10M"', "How much a request's body may have; else 413."),
    ("path", '"/api"', "Serve only what is below; of several the longest path wins."),
    ("strip", "false", "Take the path off for the target."),
)  # fmt: skip
_TABLES: Final = (
    ("[server]", "For `tunnel serve`.", (
        ("listen", '["7443"]',
         "[HOST:]PORT for links; a port alone is on every address, IPv4 and IPv6."),
        ("ports", '"20000-20999"', "Public ports for entries that name none."),
        ("public_host", '"t.example.net"', "Host that the join line names."),
        ("state", '"~/.local/state/tunnel"', "Folder for the server's key and tokens."),
        ("plain", "false", "No TLS: only for loopback or your own net."),
        ("resume", '"120s"', "How long connections wait for a lost link."),
        ("limit", '["rate=5MB/s", "connections=100"]',
         "Of each user that has no such limit of its own."),
        ("http", '"80"', "[HOST:]PORT for web services by name."),
        ("https", '"443"', "[HOST:]PORT for TLS by name."),
        ("domain", '"t.example.net"', "Completes names without a dot: NAME.DOMAIN."),
        ("certificate", '["cert.pem", "key.pem"]',
         "End TLS here for names published with http."),
        ("redirect", "false", "Send visitors of http to https, where TLS ends here."),
        ("acme", '"you@example.net"',
         "Get, use and renew certificates for names published with http."),
        ("acme_directory", '"https://acme-v02.api.letsencrypt.org/directory"',
         "The authority that is asked."),
        ("acme_ca", '"ca.pem"', "Authorities that are trusted about that URL."),
        ("acme_hook", '"/usr/local/bin/dns"',
         "A program that makes and removes DNS records, for wildcards."),
        ("client_ca", '"clients.pem"',
         "Authorities: each client needs a certificate with its user's name."),
        ("max_per_address", "4096", "Visitors of one address at once."),
        ("trusted_proxy", '["10.0.0.0/8"]',
         "Proxies in front that are believed about who visitors are."),
        ("workers", "1", "Processes that serve together; 0: one for each core."),
        ("cluster", '"redis://127.0.0.1:6379/0"',
         "Be a node of the cluster that shares this Redis."),
        ("node", '"east-1"', "Name of this node, by default that of the machine."),
        ("advertise", '"10.0.0.1:7443"', "HOST:PORT at which other nodes reach it."),
        ("cluster_secret_file", '"cluster.key"', "What all nodes know."),
        ("cluster_ca", '"ca.pem"',
         "Authorities that are trusted about the certificate of Redis."),
        *_RUN,
    )),
    ("[server.users.alice]", "A user; those that were invited stay beside it.", (
        ("verifier", '"prot1:…"', "As in STATE/users.toml; it cannot log in."),
        ("token_file", '"alice.token"', "Or a file with the token itself."),
        ("may", '["ports:16", "names:alice"]', "Its rights; without it these two."),
        ("rate", '"10MB/s"', "Bytes per second, each way."),
        ("limits", '["connections=100"]', "Other limits, as in `limit` above."),
        ("expires", "2030-01-01T00:00:00Z", "When its time is over."),
    )),
    ("[client]", "For `tunnel up`.", (
        ("to", '"tunnel://alice@t.example.net:7443/#PIN"',
         "The join line, with the token or without, or the name of a saved one."),
        ("token_file", '"alice.token"', "A file with the token of `to`."),
        ("to_file", '"alice.join"', "Or a file with the whole join line."),
        ("via", '"http://proxy.lan:3128"',
         "http:// or socks5:// proxy through which the server is reached, or none."),
        ("via_file", '"proxy.url"', "A file with it."),
        ("client_cert", '["cert.pem", "key.pem"]', "Where the server wants one."),
        ("inspect_keep", '"64MiB"',
         "How much memory the requests of inspected entries may take."),
        ("inspect_hide", '["X-Session"]',
         "Fields of heads, queries, forms and JSON whose values are hidden too."),
        *_RUN,
    )),
    ("[[client.tcp]]", "A public port leads to a target here.", (
        ("remote", "2222", "Port, ports or HOST:PORT at the server; 0 for any."),
        ("target", '"127.0.0.1:22"',
         "[HOST:]PORT, [HOST:]LOW-HIGH, unix:/path, or socks: a proxy into this "
         "network."),
        ("proxy", '"v2"', "Tell the target who its visitor is, in a PROXY header."),
        ("auth", '["USER:PASSWORD"]', "Who may use socks. The file is mode 0600 then."),
        ("auth_file", '"socks.users"', "A file with these, one a line."),
        ("network", '["10.0.0.0/8"]',
         "What socks may reach; without it everything but this machine itself."),
    )),
    ("[[client.udp]]", "A public UDP port leads to a target here.", (
        ("remote", "5353", "Port, ports or HOST:PORT at the server; 0 for any."),
        ("target", '"127.0.0.1:53"', "[HOST:]PORT or [HOST:]LOW-HIGH."),
    )),
    ("[[client.http]]", "A host name leads to a web service, or a folder, here.", _WEB),
    ("[[client.https]]", "The same, but TLS passes through to the target.", _PLACES),
    ("[[client.reach]]", "A port here leads to a target at the server's side.", (
        ("listen", '"127.0.0.1:5432"',
         "[HOST:]PORT or unix:/path; a port alone is on 127.0.0.1 and ::1."),
        ("target", '"db.lan:5432"', "HOST:PORT or unix:/path."),
        ("exit", '"home"', "Leave at this client instead of the server."),
    )),
    ("[[client.socks]]", "A SOCKS and HTTP proxy here, leaving at the server.", (
        ("listen", '"127.0.0.1:1080"', "As above."),
        ("auth", '["USER:PASSWORD"]', "Who may use it. The file is mode 0600 then."),
        ("auth_file", '"socks.users"', "A file with these, one a line."),
        ("udp_public_address", '"203.0.113.7"',
         "Where apps of other machines send their datagrams, behind NAT."),
        ("exit", '"home"', "Leave at this client instead of the server."),
    )),
    ("[[client.be_exit]]", "Other clients may leave here with `exit`.", (
        ("name", '"home"', "Of this exit."),
        ("network", '["192.168.0.0/16"]',
         "What they reach; without it everything but this machine itself."),
    )),
)  # fmt: skip
_HEAD: Final = """\
# A configuration of tunnel for both sides: `tunnel serve --config FILE`, `tunnel up
# --config FILE`, or tunnel.toml in the configuration folder. A flag is before a
# variable, that before this file, this before the default. Relative files begin at the
# folder of this one; $CREDENTIALS_DIRECTORY/ is where systemd puts credentials.
"""


def example() -> str:
    """Return the text of a file with every key, all of them comments."""
    parts = [_HEAD]
    for header, about, keys in _TABLES:
        lines = [f"# {about}", f"#{header}"]
        for key, value, told in keys:
            lines += textwrap.wrap(told, WIDTH, initial_indent="# ",
                subsequent_indent="# ")  # fmt: skip
            lines.append(f"#{key} = {value}")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)
