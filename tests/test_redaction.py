from __future__ import annotations

import logging
import time
from typing import Final

import pytest

from tunnel import redaction
from tunnel.log import JsonFormatter, LogfmtFormatter, TerminalFormatter, log_event
from tunnel.redaction import keep_secret, masked, redact

TOKEN: Final = "k7QeAbcdefghijklmnopqrstuvwxyz0123456789ABC"
PIN: Final = "UrxKFgu8GLW6gbR7MoyrzsQusqe7Sd3uiR74cdXLoSc"


@pytest.fixture(autouse=True)
def _nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redaction, "_known", {})
    monkeypatch.setattr(redaction, "_known_pattern", [])


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"tunnel://a:{TOKEN}@h:1/#{PIN}", f"tunnel://a:***@h:1/#{PIN}"),
        (f"'tunnel+plain://a:{TOKEN}@[::1]:1/'", "'tunnel+plain://a:***@[::1]:1/'"),
        (f"two tunnel://a:x@h tunnel://b:{TOKEN}@h", "two tunnel://a:***@h tunnel://b:***@h"),
        (f"tunnel://a:{TOKEN}", "tunnel://a:***"),
        (f"a:{TOKEN}@h", "a:***@h"),
        ("a:x//y@h", "a:***@h"),
        ("http://u:p@ss:w@h:1", "http://u:***@h:1"),
        ("1080,auth=me:pass,auth=you:word", "1080,auth=me:***,auth=you:***"),
        ("tunnel://h:7443/", "tunnel://h:7443/"),
        ("192.0.2.1:74, [2001:db8::1]:22", "192.0.2.1:74, [2001:db8::1]:22"),
        ("me@h:22 at 12:00:00", "me@h:22 at 12:00:00"),
        (f"SHA256:{PIN}", f"SHA256:{PIN}"),
    ],
)  # fmt: skip
def test_what_has_the_shape_of_a_secret_is_masked(text: str, shown: str) -> None:
    assert redact(text) == shown
    assert redact(shown) == shown


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["socks", "--auth", "me:pw"], ["socks", "--auth", "me:***"]),
        (["socks", "--auth=me:1234"], ["socks", "--auth=me:***"]),
        (["--auth", "me:", "pw"], ["--auth", "me:", "***"]),
        (["reach", "1:1", "db:5432"], ["reach", "1:1", "db:5432"]),
        (["--listen", "::", "--to", "x"], ["--listen", "::", "--to", "x"]),
        (["--tcp", "2222=h:22"], ["--tcp", "2222=h:22"]),
    ],
)
def test_a_command_line_is_masked_by_place(words: list[str], shown: list[str]) -> None:
    assert masked(words) == shown


def test_what_was_told_is_known_wherever_it_is_said() -> None:
    keep_secret(
        ["--auth", "me:it's", TOKEN, "x:word"], {"TUNNEL_AUTH": "a:b c:d", "X": "e:f"}
    )
    assert redact(f"not {'me:it' + chr(39) + 's'!r}") == 'not "me:***"'
    assert redact(f"[{TOKEN}] x:word a:b c:d e:f") == "[***] x:*** a:*** e:f"


@pytest.mark.parametrize("words", [["::1"], ["fe80::1%eth0"], ["a=b:c"], ["unix:/x"]])
def test_an_address_is_no_secret(words: list[str]) -> None:
    keep_secret(words, {})
    assert redact(f"at {words[0]}") == f"at {words[0]}"


@pytest.mark.parametrize("part", [":", "@:", "auth=", "a:@", "tunnel://", "//:"])
def test_a_hostile_text_takes_linear_time(part: str) -> None:
    text = f"@{part * 100_000}"
    clock = time.process_time()
    redact(text)
    assert time.process_time() - clock < 10  # quadratic: hours


@pytest.mark.parametrize(
    "formatter", [LogfmtFormatter(), JsonFormatter(), TerminalFormatter(traceback=True)]
)
def test_no_log_line_shows_a_secret(
    formatter: logging.Formatter, caplog: pytest.LogCaptureFixture
) -> None:
    line = f"tunnel://a:{TOKEN}@h"
    logger = logging.getLogger("tunnel.test")
    log_event(logger, logging.ERROR, f"e {line}", x=line, exc_info=ValueError(line))
    logger.error("foreign %s", line)
    for record in caplog.records:
        assert TOKEN not in formatter.format(record)
        assert "a:***@h" in formatter.format(record)


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["--header", "+X-Key: a secret,1"], ["--header", "+X-Key:***"]),
        (["--header=+X-Key:secret,1"], ["--header=+X-Key:***"]),
        (["--response-header=+X-Key: a secret"], ["--response-header=+X-Key:***"]),
        (
            ["--http", "a=80,header=+X-Key:a secret,host=b,header=+Y:c,header=-Z"],
            ["--http", "a=80,header=+X-Key:***,host=b,header=+Y:***,header=-Z"],
        ),
        (["--header=-X-Key"], ["--header=-X-Key"]),
    ],
)
def test_the_value_of_a_header_that_is_set_is_masked(
    words: list[str], shown: list[str]
) -> None:
    assert masked(words) == shown
