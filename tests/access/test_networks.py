from __future__ import annotations

import pytest

from tunnel.access.networks import Networks
from tunnel.errors import UsageError


@pytest.mark.parametrize(
    "ip",
    ["127.0.0.1", "127.9.9.9", "::1", "0.0.0.0", "::", "169.254.169.254", "fe80::1",
     "fe80::1%lo", "224.0.0.1", "ff02::1", "::ffff:127.0.0.1", "64:ff9b::127.0.0.1",
     "2002:7f00:1::1", "2002:a9fe:a9fe::1", "2001:0:7f00:1::1", "100.100.100.200",
     "168.63.129.16", "fd00:ec2::254", "", "127.1"],
)  # fmt: skip
def test_this_machine_itself_is_not_reached_unless_told(ip: str) -> None:
    assert not Networks().allow(ip, 80)


@pytest.mark.parametrize("ip", ["192.0.2.7", "10.1.2.3", "2001:db8::7"])
def test_other_machines_are_reached(ip: str) -> None:
    assert Networks().allow(ip, 80)


def test_only_the_named_networks_are_reached_once_any_is_named() -> None:
    networks = Networks.parse(["10.0.0.0/8", "127.0.0.1", "2001:db8::/32"])
    assert networks.allow("10.9.9.9", 1)
    assert networks.allow("127.0.0.1", 1)
    assert networks.allow("2001:db8::5", 1)
    assert not networks.allow("127.0.0.2", 1)
    assert not networks.allow("192.0.2.7", 1)
    assert str(networks) == "10.0.0.0/8, 127.0.0.1/32, 2001:db8::/32"


@pytest.mark.parametrize("text", ["", "lan", "10.0.0.1/8", "10.0.0.0/33"])
def test_what_is_no_network_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        Networks.parse([text])
