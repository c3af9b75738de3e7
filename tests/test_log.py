from __future__ import annotations

import json
import logging
import re
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel.access.join import Secret
from tunnel.log import JsonFormatter, LogfmtFormatter, TerminalFormatter, log_event
from tunnel.redaction import redact

PAIR = re.compile(r'([\w.-]+)=("(?:[^"\\]|\\.)*"|[^\s"=]+)(?: |$)')
FORMATTERS = [LogfmtFormatter(), JsonFormatter(), TerminalFormatter(colour=False)]
EVIL = 'a\r\nlevel=error\x1b[2J\x85\u2028\u202e\x00\x7f"\\ ='


class Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    @property
    def last(self) -> logging.LogRecord:
        return self.records[-1]


def make_logger(level: int = logging.DEBUG) -> tuple[logging.Logger, Kept]:
    logger = logging.Logger("tunnel.test", level)
    kept = Kept()
    logger.addHandler(kept)
    return logger, kept


def record_of(event: str = "link.up", /, **fields: object) -> logging.LogRecord:
    logger, kept = make_logger()
    log_event(logger, logging.INFO, event, **fields)  # type: ignore[arg-type]
    kept.last.created = 1_700_000_000.25
    return kept.last


def record_of_failure(error: Exception) -> logging.LogRecord:
    logger, kept = make_logger()
    try:
        raise error
    except type(error) as caught:
        log_event(logger, logging.ERROR, "stream.failed", exc_info=caught, sock_map=3)
    return kept.last


def parsed(line: str) -> dict[str, str]:
    """Read logfmt as strictly as anybody could; every character must belong."""
    pairs, at = {}, 0
    while at < len(line):
        found = PAIR.match(line, at)
        assert found, line[at:]
        key, value = found.groups()
        pairs[key] = json.loads(value) if value.startswith('"') else value
        at = found.end()
    return pairs


@pytest.fixture
def foreign() -> tuple[logging.Logger, Kept]:
    return make_logger()


def test_a_record_carries_the_event_and_its_fields() -> None:
    line = LogfmtFormatter().format(record_of(peer="192.0.2.1:7443", rtt_ms=1.5))
    assert line == (
        "ts=2023-11-14T22:13:20.250Z level=info event=link.up "
        "peer=192.0.2.1:7443 rtt_ms=1.5"
    )


def test_nothing_is_recorded_while_the_level_is_off() -> None:
    logger, kept = make_logger(logging.WARNING)
    log_event(logger, logging.INFO, "link.up", peer="-")
    assert not kept.records


def test_a_record_names_the_function_that_spoke() -> None:
    assert record_of().funcName == "record_of"


def test_a_percent_sign_in_an_event_is_only_a_percent_sign() -> None:
    assert 'event="100 %s"' in LogfmtFormatter().format(record_of("100 %s"))


def test_fields_may_have_the_names_that_logging_uses_itself() -> None:
    fields = {"name": "a", "args": "b", "message": "c", "msg": "d", "logger": "e"}
    got = json.loads(JsonFormatter().format(record_of(**fields)))
    assert fields.items() <= got.items()


def test_a_field_never_replaces_the_head_of_the_line() -> None:
    got = parsed(LogfmtFormatter().format(record_of(ts="a", level="b", event="c")))
    assert (got["level"], got["event"]) == ("info", "link.up")
    assert (got["ts_"], got["level_"], got["event_"]) == ("a", "b", "c")


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("plain", "plain"),
        ("", '""'),
        ("two words", '"two words"'),
        ("a=b", '"a=b"'),
        ('say "no"', r'"say \"no\""'),
        ("C:\\dir", "C:\\dir"),
        ("a\nb", r'"a\nb"'),
        ("\x1b[31m", r'"\u001b[31m"'),
        ("žluťoučký", "žluťoučký"),
        ("žluťoučký kůň", '"žluťoučký kůň"'),
        ("\u2028", r'"\u2028"'),
        ("\ud800", r'"\ud800"'),
        (True, "true"),
        (False, "false"),
        (0, "0"),
        (2.5, "2.5"),
        (float("inf"), "inf"),
    ],
)
def test_logfmt_quotes_what_needs_it(value: object, written: str) -> None:
    assert LogfmtFormatter().format(record_of(x=value)).endswith(f" x={written}")


def test_logfmt_leaves_out_what_has_no_value() -> None:
    assert "x" not in parsed(LogfmtFormatter().format(record_of(x=None)))


def test_json_keeps_the_types_of_values() -> None:
    fields = {"a": None, "b": True, "c": 3, "d": 0.5, "e": "text"}
    got = json.loads(JsonFormatter().format(record_of(**fields)))
    assert {key: got[key] for key in fields} == fields
    assert got["ts"] == "2023-11-14T22:13:20.250Z"


def test_json_has_no_words_that_json_does_not_know() -> None:
    assert '"x": "nan"' in JsonFormatter().format(record_of(x=float("nan")))


@pytest.mark.parametrize("formatter", FORMATTERS)
def test_a_secret_is_never_written(formatter: logging.Formatter) -> None:
    line = formatter.format(record_of(token=Secret("hunter2")))
    assert "***" in line
    assert "hunter2" not in line


@given(
    event=st.text(),
    fields=st.dictionaries(st.text(max_size=5), st.text() | st.floats() | st.none()),
)
def test_any_text_stays_on_one_printable_line(
    event: str, fields: dict[str, object]
) -> None:
    fields.pop("exc_info", None)
    for formatter in FORMATTERS:
        line = formatter.format(record_of(event, **fields))
        assert line.isprintable()
        line.encode()


@given(
    event=st.text(),
    fields=st.dictionaries(
        st.from_regex(r"[a-z][a-z0-9_]{0,9}", fullmatch=True).filter(
            lambda key: key not in ("ts", "level", "event", "exc_info")
        ),
        st.text(),
    ),
)
def test_logfmt_can_be_read_back(event: str, fields: dict[str, str]) -> None:
    got = parsed(LogfmtFormatter().format(record_of(event, **fields)))
    del got["ts"]
    shown = {key: redact(value) for key, value in fields.items()}
    assert got == {"level": "info", "event": redact(event), **shown}


@pytest.mark.parametrize("formatter", FORMATTERS)
def test_records_of_other_libraries_are_written_too(
    formatter: logging.Formatter, foreign: tuple[logging.Logger, Kept]
) -> None:
    logger, kept = foreign
    logger.warning("lost %d of %s", 3, EVIL)
    line = formatter.format(kept.last)
    assert line.isprintable()
    assert "lost 3 of a" in line
    assert "tunnel.test" in line


def test_a_foreign_field_of_our_name_does_no_harm(
    foreign: tuple[logging.Logger, Kept],
) -> None:
    logger, kept = foreign
    logger.warning("odd", extra={"tunnel_fields": 7})
    assert parsed(LogfmtFormatter().format(kept.last))["logger"] == "tunnel.test"


@pytest.mark.parametrize("formatter", FORMATTERS)
def test_an_exception_is_one_field_on_the_same_line(
    formatter: logging.Formatter,
) -> None:
    line = formatter.format(record_of_failure(ValueError(EVIL)))
    assert line.isprintable()
    assert "ValueError: a" in line
    assert "Traceback" not in line


def test_an_exception_without_words_is_its_name() -> None:
    line = LogfmtFormatter().format(record_of_failure(KeyError()))
    assert parsed(line)["error"] == "KeyError"


def test_exception_without_an_exception_has_no_error(
    foreign: tuple[logging.Logger, Kept],
) -> None:
    logger, kept = foreign
    assert sys.exc_info()[1] is None
    logger.exception("nothing to see")  # what logging then records is three times None
    assert "error" not in parsed(LogfmtFormatter(traceback=True).format(kept.last))


def test_machines_get_the_traceback_as_a_field() -> None:
    record = record_of_failure(ValueError(EVIL))
    line = LogfmtFormatter(traceback=True).format(record)
    assert line.isprintable()
    assert parsed(line)["traceback"].startswith("Traceback (most recent call last):\n")
    line = JsonFormatter(traceback=True).format(record)
    assert line.isprintable()
    assert "record_of_failure" in json.loads(line)["traceback"]


def test_a_person_gets_the_traceback_below_the_line() -> None:
    record = record_of_failure(ValueError(EVIL))
    first, second, *rest = TerminalFormatter(traceback=True).format(record).split("\n")
    assert "error=" in first
    assert second == "  Traceback (most recent call last):"
    assert all(line.isprintable() for line in rest)


def test_a_terminal_line_is_short() -> None:
    line = TerminalFormatter().format(record_of(peer="192.0.2.1:7443"))
    assert re.fullmatch(r"\d\d:\d\d:\d\d info link\.up peer=192\.0\.2\.1:7443", line)


def test_a_terminal_line_without_fields_ends_with_the_event() -> None:
    assert TerminalFormatter().format(record_of()).endswith(" info link.up")


@pytest.mark.parametrize(
    ("level", "colour"),
    [
        (logging.DEBUG, 2), (logging.INFO, 32), (logging.WARNING, 33),
        (logging.ERROR, 31), (logging.CRITICAL, 31), (1, 2),
    ],
)  # fmt: skip
def test_colour_says_the_level_where_it_is_allowed(level: int, colour: int) -> None:
    logger, kept = make_logger(level)
    log_event(logger, level, "link.up")
    name = kept.last.levelname.lower()
    assert f"\x1b[{colour}m{name}\x1b[0m" in TerminalFormatter(colour=True).format(
        kept.last
    )
    assert "\x1b" not in TerminalFormatter(colour=False).format(kept.last)
