"""The TUNNEL_… variables: each has one meaning, and a wrong one is named."""

from __future__ import annotations

import pytest

from tunnel.errors import UsageError
from tunnel.ops import cli
from tunnel.ops.variables import Environment, known, unknown, variable_of

COMMANDS = "serve", "up", "tcp", "udp", "share", "reach", "socks", "pipe", "join"


def test_the_table_is_what_the_commands_take() -> None:
    taken = {
        variable_of(command, argument.name)
        for command in COMMANDS
        for argument in cli.app[command].assemble_argument_collection()
    } - {None}
    files = {f"TUNNEL_{word}_FILE" for word in ("TO", "VIA", "AUTH", "DASHBOARD_AUTH")}
    assert taken | files | {"TUNNEL_ONCE", "TUNNEL_TRUST_FILES", "TUNNEL_NET"} == known(
        cli.app
    )


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("TUNNEL_AUHT", "TUNNEL_AUTH"),
        ("TUNNEL_PORT", "TUNNEL_PORTS"),
        ("TUNNEL_SERV_HTTP", "TUNNEL_SERVE_HTTP"),
        ("TUNNEL_QQQQQQ", None),
    ],
)
def test_an_unknown_variable_is_found_with_what_was_meant(
    name: str, meant: str | None
) -> None:
    assert unknown(cli.app, {name: "me:pw", "HOME": "/"}) == {name: meant}


def test_what_kubernetes_makes_for_a_service_is_no_mistake() -> None:
    made = {
        "TUNNEL_SERVICE_HOST": "10.0.0.1",
        "TUNNEL_SERVICE_PORT": "7443",
        "TUNNEL_SERVICE_PORT_LINK": "7443",
        "TUNNEL_PORT": "tcp://10.0.0.1:7443",
        "TUNNEL_PORT_7443_TCP": "tcp://10.0.0.1:7443",
        "TUNNEL_PORT_7443_TCP_ADDR": "10.0.0.1",
        "TUNNEL_SERVER_SERVICE_HOST": "10.0.0.1",
        "TUNNEL_SERVER_PORT": "tcp://10.0.0.1:7443",
    }
    assert unknown(cli.app, made) == {}


def test_an_empty_variable_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNNEL_STATE", "")
    monkeypatch.setenv("TUNNEL_SERVE_HTTP", "")
    monkeypatch.setenv("TUNNEL_HTTP", "8080")
    environment = Environment()
    arguments = cli.app["serve"].assemble_argument_collection()
    environment(cli.app, ("serve",), arguments)
    assert environment.given == ["TUNNEL_HTTP"]
    assert environment.sources() == "TUNNEL_HTTP (now TUNNEL_SERVE_HTTP)"


def test_a_usage_error_names_the_variables_that_were_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli.ENVIRONMENT, "given", ["TUNNEL_DRAIN"])
    assert cli._refuse(UsageError("'8x' is not a duration")) == 2
    assert "read from the environment: TUNNEL_DRAIN" in capsys.readouterr().err
