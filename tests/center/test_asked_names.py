"""Which certificate a published name asks for."""

from __future__ import annotations

import pytest

from tunnel.center.asked_names import NameRules, NotAskedError

NOTHING: frozenset[str] = frozenset()


@pytest.mark.parametrize("host", ["a.example.net", "xn--bcher-kva.de", "1.2.de"])
def test_a_public_name_asks_for_its_own(host: str) -> None:
    assert NameRules().certificate_for(host, NOTHING) == host


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "10.0x1f", "a.localhost", "web.test", "nas.local", "x.internal",
        "a.example", "router.lan", "a_b.example.net", "-a.example.net",
        f"{'a.' * 120}example.net", "*.example.net", "single", "a.home.arpa", "",
    ],
)  # fmt: skip
def test_what_no_public_authority_signs_is_not_asked_for(host: str) -> None:
    with pytest.raises(NotAskedError) as caught:
        NameRules().certificate_for(host, NOTHING)
    assert str(caught.value)
    assert caught.value.fix


@pytest.mark.parametrize("host", ["a.localhost", "web.test", "nas.local"])
def test_ones_own_authority_may_sign_private_names(host: str) -> None:
    assert NameRules(own_authority=True).certificate_for(host, NOTHING) == host


@pytest.mark.parametrize("host", ["127.0.0.1", "a_b.test", "*.x.test"])
def test_no_authority_is_asked_for_addresses_or_without_a_hook_wildcards(
    host: str,
) -> None:
    with pytest.raises(NotAskedError):
        NameRules(own_authority=True).certificate_for(host, NOTHING)


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("a.t.example.net", "*.t.example.net"),
        ("*.t.example.net", "*.t.example.net"),
        ("a.b.t.example.net", "a.b.t.example.net"),
        ("t.example.net", "t.example.net"),
        ("*.other.net", "*.other.net"),
        ("other.net", "other.net"),
    ],
)
def test_with_a_hook_one_wildcard_serves_what_is_right_below_the_domain(
    host: str, name: str
) -> None:
    rules = NameRules(has_hook=True, domain="t.example.net")
    assert rules.certificate_for(host, NOTHING) == name


def test_what_the_given_certificate_is_for_is_not_asked_for() -> None:
    given = frozenset(("*.t.example.net",))
    assert NameRules().certificate_for("a.t.example.net", given) is None
    assert NameRules().certificate_for("*.t.example.net", given) is None
    assert NameRules().certificate_for("a.b.t.example.net", given) is not None
