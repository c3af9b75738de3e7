"""The benchmarks report what they found, and what they did not find. No speed here."""

from __future__ import annotations

import shutil
import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING

import pytest

from benchmarks import chart, machine, report
from benchmarks.apps import APP_PEERS, BY_SOCKS, SSH_D, Apps, Microsocks
from benchmarks.datagrams import (
    BY_UDP,
    CHISEL_UDP,
    FRP_UDP,
    UDP_DIRECT,
    UDP_PEERS,
    Datagrams,
    UdpDirect,
)
from benchmarks.families import KINDS, Run, turned
from benchmarks.loads import QUICK, Loads
from benchmarks.machine import NotInstalledError
from benchmarks.names import BY_NAME, FRP_BY_NAME, Browsers
from benchmarks.peers import DIRECT, PEERS, TUNNEL, Chisel, Direct, Tools
from benchmarks.report import Result

if TYPE_CHECKING:
    from pathlib import Path

GET = "get ×1, MB/s"


def sample() -> Result:
    result = Result(about={"processor": "2 cores, <some & other>"})
    for name in ("direct", "openssh", "tunnel", "chisel"):
        kind = PEERS[name]
        result.peers[name] = {
            "label": kind.label,
            "mode": kind.mode,
            "version": "1.0",
        }
    rounds: list[tuple[float, ...]]
    rounds = [(4000, 1000, 500), (2000, 500, 350), (3000, 900, 630)]
    for number, values in enumerate(rounds):
        for peer, value in zip(("direct", "openssh", "tunnel"), values, strict=True):
            result.add("main", GET, peer, value, round_=number)
    for conns, value in (("1", 900.0), ("10,000", 80.0)):
        result.add("size", f"rr on {conns}, /s", "tunnel", value)
    for size, value in (("1 KB", 0.3), ("1 GB", 2000.0)):
        result.add("size", f"connect and get {size}, ms", "tunnel", value)
    return result


def rows(result: Result, word: str) -> list[list[str]]:
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in report.text(result).splitlines()
        if word in line
    ]


def test_a_row_has_median_spread_and_the_median_of_the_rounds_ratios() -> None:
    (mine,) = [row for row in rows(sample(), GET) if row[1] == "tunnel"]
    # 0.5, 0.7 and 0.7 of OpenSSH, although the medians' ratio is 0.56
    assert mine[2:6] == ["500", "350..630", "0.17", "0.70"]
    assert mine[6].startswith("≥ 0.6 × openssh: floor")


def test_a_round_that_only_one_of_two_peers_finished_has_no_ratio() -> None:
    result = sample()
    result.add("main", GET, "tunnel", 9000, round_=3)
    assert result.ratio(GET, "tunnel", "openssh") == pytest.approx(0.7)


def test_a_quick_run_is_not_judged() -> None:
    result = sample()
    result.quick = True
    assert not any("floor" in line for line in report.text(result).splitlines())


def test_an_absent_peer_is_a_row_that_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(Chisel, "needs", ("chisel-of-nobody",))
    result = sample()
    result.peers["chisel"] = Chisel.describe()
    (row,) = rows(result, "chisel")
    assert row == ["chisel", "-", "MISSING: not on PATH: chisel-of-nobody"]
    with pytest.raises(NotInstalledError, match="chisel-of-nobody"):
        Chisel(Tools(tmp_path, "", "")).start()


def test_a_failed_load_is_a_row_that_says_why() -> None:
    result = sample()
    result.fail("main", "cps 32", "chisel", "end of stream")
    (row,) = rows(result, "cps 32")
    assert row[1:3] == ["chisel", "FAILED: end of stream"]


def test_a_result_is_the_same_after_writing_and_reading(tmp_path: Path) -> None:
    sample().write(tmp_path / "result.json")
    assert Result.read(tmp_path / "result.json") == sample()


def test_the_chart_is_well_formed_and_shows_bars_and_lines() -> None:
    root = ET.fromstring(chart.svg(sample()))  # noqa: S314 - our own text
    space = "{http://www.w3.org/2000/svg}"
    texts = [each.text for each in root.iter(f"{space}text")]
    assert GET in texts
    assert "more is better; no tunnel at all: 3,000" in texts
    bars = [each for each in root.iter(f"{space}rect") if "bar" in str(each.attrib)]
    widths = [float(each.get("width", "0")) for each in bars]
    assert widths[1] / widths[0] == pytest.approx(500 / 900, rel=0.01)
    assert len(list(root.iter(f"{space}polyline"))) == 2


def test_the_chart_shows_what_a_family_has_of_its_own() -> None:
    result, figure = Result(), "UDP echo p50, µs"
    for peer, value in ((UDP_DIRECT, 5.0), (BY_UDP, 40.0), (FRP_UDP, 20.0)):
        result.peers[peer] = {"label": KINDS[peer].label, "mode": "", "version": "1.0"}
        result.add("udp", figure, peer, value)
    drawn = chart.svg(result)
    assert "less is better; no tunnel at all: 5" in drawn
    assert drawn.count('class="bar ours"') == 1
    assert drawn.count('class="bar"') == 1


def test_the_chart_of_a_result_without_any_value_is_still_a_chart() -> None:
    ET.fromstring(chart.svg(Result()))  # noqa: S314 - our own text


def test_every_peer_says_in_which_mode_it_runs() -> None:
    for name, kind in KINDS.items():
        assert kind.name == name
        assert kind.label
        assert kind.mode


def test_turns_begin_with_another_each_time() -> None:
    assert [turned([1, 2, 3], by) for by in range(3)] == [
        [1, 2, 3],
        [2, 3, 1],
        [3, 1, 2],
    ]


def test_a_name_is_judged_by_our_own_port_and_by_frp() -> None:
    result, figure = Result(), "1 KiB on 64 visitors, /s"
    for peer, value in ((TUNNEL, 10_000), (BY_NAME, 4_000), (FRP_BY_NAME, 3_000)):
        result.peers[peer] = {"label": KINDS[peer].label, "mode": "", "version": "1.0"}
        result.add("names", figure, peer, value)
    text = report.text(result)
    assert "≥ 0.3 × tunnel: floor; ≥ 1.5 × frp-http: NO" in text
    assert text.count("floor") == 1


def test_a_family_has_the_peers_that_can_carry_it(tmp_path: Path) -> None:
    result = Result()
    names = [DIRECT, TUNNEL, BY_NAME, "openssh", *APP_PEERS, *UDP_PEERS]
    result.peers = {name: {} for name in names}
    tools = Tools(tmp_path, "", "")
    run = Run(tools, Loads("", QUICK), result, names, 1, 0.0)
    assert run.present("names") == [DIRECT, TUNNEL, BY_NAME]
    assert run.present("main") == [DIRECT, TUNNEL, "openssh"]
    assert run.present("socks") == [DIRECT, *APP_PEERS]
    assert run.present("udp") == [*UDP_PEERS]


@pytest.mark.parametrize(
    ("frp", "chisel", "verdict"),
    [(10_000, 9_000, "goal"), (10_000, 20_000, "floor"), (20_000, 9_000, "NO")],
)
def test_a_floor_and_its_goal_may_be_those_of_two_peers(
    frp: float, chisel: float, verdict: str
) -> None:
    result, figure = Result(), "UDP on 32 flows, /s"
    for peer, value in ((BY_UDP, 8_500), (FRP_UDP, frp), (CHISEL_UDP, chisel)):
        result.peers[peer] = {"label": KINDS[peer].label, "mode": "", "version": "1.0"}
        result.add("udp", figure, peer, value)
    (mine,) = [row for row in rows(result, figure) if row[1] == "tunnel udp"]
    assert mine[6] == f"≥ 0.8 × frp-udp: {verdict}"


def test_a_family_is_compared_with_two_of_its_own_peers() -> None:
    result, figure = Result(), "UDP echo p50, µs"
    for peer, value in ((UDP_DIRECT, 10.0), (BY_UDP, 40.0), (FRP_UDP, 20.0)):
        result.peers[peer] = {"label": KINDS[peer].label, "mode": "", "version": "1.0"}
        result.add("udp", figure, peer, value)
    (mine,) = [row for row in rows(result, figure) if row[1] == "tunnel udp"]
    assert mine[4:6] == ["4.00", "2.00"]
    result.add("socks", "SOCKS5 cps 32, /s", BY_SOCKS, 4_000)
    assert f"× {SSH_D}" in report.text(result)


def test_the_load_program_sends_datagrams(tmp_path: Path) -> None:
    if not any(map(shutil.which, ("cc", "gcc", "clang"))):
        pytest.skip("no C compiler")
    tools = Tools(tmp_path, machine.compile_c("load", tmp_path), "")
    loads = Loads(tools.load, QUICK)
    datagrams, peer = Datagrams(loads), UdpDirect(tools)
    try:
        peer.start()
        assert datagrams.echo(peer)["UDP echo p50, µs"] > 0
        assert datagrams.flows(peer)["UDP on 32 flows, /s"] > 0
        found = loads.load("udp-flood", peer, 100, 1_000, 1_200)
        assert found["sent"] == 100
        assert 0 <= found["share"] <= 1
    finally:
        peer.stop()


def test_the_load_program_goes_through_a_proxy(tmp_path: Path) -> None:
    if not any(map(shutil.which, ("cc", "gcc", "clang"))):
        pytest.skip("no C compiler")
    if not shutil.which("microsocks"):
        pytest.skip("no microsocks")
    tools = Tools(tmp_path, machine.compile_c("load", tmp_path), "")
    loads = Loads(tools.load, QUICK)
    apps, peer = Apps(loads), Microsocks(tools)
    try:
        peer.start()
        assert apps.by_socks(peer)["SOCKS5 cps 32, /s"] > 0
        assert apps.by_connect(peer) == {}
        assert apps.first_echo(peer)["SOCKS5 connect and echo p50, µs"] > 0
        assert apps.bulk(peer)["SOCKS5 get ×1, MB/s"] > 0
    finally:
        peer.stop()


def test_the_load_program_asks_for_web_answers_and_for_websockets(
    tmp_path: Path,
) -> None:
    if not any(map(shutil.which, ("cc", "gcc", "clang"))):
        pytest.skip("no C compiler")
    tools = Tools(tmp_path, machine.compile_c("load", tmp_path), "")
    loads = Loads(tools.load, QUICK)
    browsers = Browsers(loads)
    peer = Direct(tools)
    try:
        peer.start()
        assert browsers.small_on_64(peer)["1 KiB on 64 visitors, /s"] > 0
        assert browsers.large_on_8(peer)["1 MiB on 8 visitors, MB/s"] > 0
        assert browsers.websocket(peer)["WebSocket echo p50, µs"] > 0
        for mode in ("web-hold", "ws-hold"):
            with loads.held(peer, 3, mode):
                pass
    finally:
        peer.stop()
