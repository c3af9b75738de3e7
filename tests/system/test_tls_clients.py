"""TLS clients that people have, at the one port where links come in as well."""

from __future__ import annotations

import socket
import ssl
import subprocess
from typing import TYPE_CHECKING, Final

import pytest
import trustme
from support.browser import find_browser
from support.processes import WORKERS, Machine, free_port, program
from support.targets import Target, visit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HOST: Final = "shop.localhost"
BODY: Final = b"<body>the shop</body>"
HELLOS: Final = 300


def page(conn: socket.socket) -> object:
    """Answer one request."""
    while b"\r\n\r\n" not in conn.recv(65_536):
        pass
    conn.sendall(
        b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\n"
        b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
    )
    return None


class Shop:
    """A server with links and names on one port, and a shop behind it."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.authority = trustme.CA()
        self.ca = machine.home / "ca.pem"
        self.authority.cert_pem.write_to_path(self.ca)
        # With TLS 1.2 a key on a curve would need that curve among the groups.
        leaf = self.authority.issue_cert(HOST, key_type=trustme.KeyType.RSA)
        leaf.private_key_pem.write_to_path(machine.home / "key.pem")
        leaf.cert_chain_pems[0].write_to_path(machine.home / "chain.pem")
        self.port = free_port()
        self.target = Target(page)
        at = f"127.0.0.1:{self.port}"
        chain, key = machine.home / "chain.pem", machine.home / "key.pem"
        self.server = machine.serve(
            "--https", at, "--certificate", str(chain), str(key), listen=at
        )
        client = machine.up(self.server.join, "--http", f"shop={self.target.port}")
        self.url = client.out.all()[0].split()[1]

    def openssl(self, *options: str) -> tuple[int, str]:
        """Shake hands with ``openssl s_client``; give its status, and what it said."""
        command = (
            program("openssl"), "s_client", "-connect", f"127.0.0.1:{self.port}",
            "-servername", HOST, "-CAfile", str(self.ca), "-verify_return_error",
            *options,
        )  # fmt: skip
        done = subprocess.run(
            command, input=b"Q\n", capture_output=True, timeout=60, check=False
        )
        return done.returncode, (done.stdout + done.stderr).decode(errors="replace")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    machine = Machine(tmp_path_factory.mktemp("shop"))
    made = Shop(machine)
    yield made
    made.target.close()
    machine.close()


def test_what_up_prints_is_the_url(shop: Shop) -> None:
    assert shop.url == f"https://{HOST}:{shop.port}/"


@pytest.mark.parametrize("version", ["tls1_2", "tls1_3"])
@pytest.mark.parametrize("group", ["X25519", "P-256"])
def test_openssl_gets_in_with_one_key_exchange(
    shop: Shop, version: str, group: str
) -> None:
    status, said = shop.openssl(f"-{version}", "-groups", group)
    assert status == 0, said
    assert "Verify return code: 0 (ok)" in said
    assert f"TLSv1.{version[-1]}" in said


def test_openssl_resumes(shop: Shop) -> None:
    # Each of several processes has keys of its own: at another one all is done anew.
    tries, least = (1, 5) if WORKERS == 1 else (6, 1)
    reused = 0
    for _ in range(tries):
        _, said = shop.openssl("-tls1_2", "-reconnect")
        reused += said.count("Reused, TLSv1.2")
        assert said.count("Reused, TLSv1.2") + said.count("New, TLSv1.2") == 6
    assert reused >= least
    with socket.create_connection(("127.0.0.1", shop.port)) as raw:
        context = ssl.create_default_context(cafile=shop.ca)
        with context.wrap_socket(raw, server_hostname=HOST) as first:
            first.sendall(f"GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
            first.recv(65_536)
            session = first.session  # its tickets came with the answer
    found = []
    for _ in range(1 if WORKERS == 1 else 20):
        with (
            socket.create_connection(("127.0.0.1", shop.port)) as raw,
            context.wrap_socket(raw, server_hostname=HOST, session=session) as again,
        ):
            assert again.version() == "TLSv1.3"
            found.append(again.session_reused)
    assert any(found)


def test_a_finite_field_alone_is_refused_and_costs_little(
    shop: Shop, figures: Callable[[str], None]
) -> None:
    groups = "ffdhe2048:ffdhe8192"
    status, said = shop.openssl("-tls1_3", "-groups", groups)
    assert status != 0
    assert "handshake failure" in said
    hello = _hello_with(shop, groups)
    before = shop.server.program.computed_s()
    for _ in range(HELLOS):
        with visit(shop.port) as stranger:
            stranger.sendall(hello)
            assert stranger.recv(100)[:1] == b"\x15"  # an alert
    each_ms = 1_000 * (shop.server.program.computed_s() - before) / HELLOS
    figures(f"a hello with ffdhe alone: {each_ms:.2f} ms of the server")
    assert each_ms < 5  # with it done: 100


def _hello_with(shop: Shop, groups: str) -> bytes:
    """Record what ``openssl`` says first."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        command = (
            program("openssl"), "s_client", "-tls1_3", "-groups", groups,
            "-servername", HOST, "-connect",
            f"127.0.0.1:{listener.getsockname()[1]}",
        )  # fmt: skip
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as client:  # fmt: skip
            conn, _ = listener.accept()
            with conn:
                said = conn.recv(65_536)
                while len(said) < 5 + int.from_bytes(said[3:5], "big"):
                    said += conn.recv(65_536)
            client.kill()
    return said


def test_curl_and_a_browser_see_the_page(shop: Shop) -> None:
    at = f"{HOST}:{shop.port}:127.0.0.1"
    done = shop.machine.run(
        program("curl"), "-sS", "--noproxy", "*", "--cacert", str(shop.ca),
        "--resolve", at, shop.url,
    )  # fmt: skip
    assert done.stdout == BODY, done.stderr
    browser = find_browser(shop.machine)
    text = browser.text(shop.url, "--ignore-certificate-errors")
    assert text == "the shop"


GO: Final = """
package main

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
)

func main() {
	pem, _ := os.ReadFile(os.Args[2])
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		for _, curve := range []tls.CurveID{tls.X25519, tls.CurveP256} {
			transport := &http.Transport{
				TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: version,
					MaxVersion: version, CurvePreferences: []tls.CurveID{curve}},
				Dial: func(network, _ string) (net.Conn, error) {
					return net.Dial(network, os.Args[3])
				},
			}
			answer, err := (&http.Client{Transport: transport}).Get(os.Args[1])
			if err != nil {
				fmt.Println(err)
				os.Exit(1)
			}
			body, _ := io.ReadAll(answer.Body)
			fmt.Println(string(body))
		}
	}
}
"""


@pytest.mark.deep
def test_go_gets_in(shop: Shop) -> None:
    go = program("go")
    source = shop.machine.home / "main.go"
    source.write_text(GO, "utf-8")
    done = shop.machine.run(
        go, "run", str(source), shop.url, str(shop.ca), f"127.0.0.1:{shop.port}",
        timeout_s=100,
    )  # fmt: skip
    assert done.stdout.split(b"\n")[:4] == [BODY] * 4, done.stdout + done.stderr


JAVA: Final = """
import java.net.*;
import java.net.http.*;
import javax.net.ssl.*;

public class Visit {
    public static void main(String[] args) throws Exception {
        for (String version : new String[] {"TLSv1.2", "TLSv1.3"}) {
            SSLParameters parameters = new SSLParameters();
            parameters.setProtocols(new String[] {version});
            HttpClient client = HttpClient.newBuilder().sslParameters(parameters)
                .version(HttpClient.Version.HTTP_1_1).build();
            HttpRequest request = HttpRequest.newBuilder(URI.create(args[0])).build();
            System.out.println(
                client.send(request, HttpResponse.BodyHandlers.ofString()).body());
        }
    }
}
"""


@pytest.mark.deep
@pytest.mark.parametrize("group", ["x25519", "secp256r1"])
def test_java_gets_in(shop: Shop, group: str) -> None:
    java, keytool = program("java"), program("keytool")
    home = shop.machine.home
    (home / "Visit.java").write_text(JAVA, "utf-8")
    store = home / f"{group}.p12"
    shop.machine.run(
        keytool, "-importcert", "-noprompt", "-alias", "ca", "-file", str(shop.ca),
        "-keystore", str(store), "-storepass", "changeit", "-storetype", "PKCS12",
    )  # fmt: skip
    names = home / "hosts"
    names.write_text(f"127.0.0.1 {HOST}\n", "utf-8")
    done = shop.machine.run(
        java, f"-Djavax.net.ssl.trustStore={store}",
        "-Djavax.net.ssl.trustStorePassword=changeit",
        f"-Djdk.tls.namedGroups={group}", f"-Djdk.net.hosts.file={names}",
        str(home / "Visit.java"), shop.url,
    )  # fmt: skip
    assert done.stdout.split() == [*BODY.split(), *BODY.split()], done.stderr
