"""Why a connection is slow, as people read it. Loads nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tunnel.ops.control.status_text import Fields, number, text
from tunnel.ops.texts import size_text

if TYPE_CHECKING:
    from collections.abc import Iterator

WORDS: Final = {
    "nothing": "nothing",
    "credit": "the other end's reader",
    "turn": "its turn on the link",
    "line": "the line",
    "rate": "the rate of its user or entry",
    "local": "the program at this end, to take what came",
    "target": "the target, which was asked",
    "program": "the program that opened it, to send something",
    "link": "another link",
}


def why_lines(answer: Fields, where: str) -> Iterator[str]:
    """Yield the lines about one connection; ``where`` names the process that tells."""
    end = "opened here" if text(answer, "end") == "opener" else "leaves here"
    about = [end, *_named(answer, "target", "to"), *_named(answer, "visitor", "for")]
    about += _named(answer, "local", "local end")
    yield f"{text(answer, 'id')}  {', '.join(about)}  ({where})"
    yield f"  now        waits for {_word(text(answer, 'now'))}"
    yield f"  minute     {_minute(answer)}"
    sent, received = number(answer, "sent_bytes"), number(answer, "received_bytes")
    yield f"  passed     {size_text(sent)} sent, {size_text(received)} received"
    yield (
        f"  here       {size_text(number(answer, 'unsent_bytes'))} unsent, "
        f"{size_text(number(answer, 'unread_bytes'))} not taken, "
        f"{size_text(number(answer, 'credit_bytes'))} of credit left"
    )
    for key, label in (("line", "line"), ("local_line", "local TCP")):
        figures = answer.get(key)
        if isinstance(figures, dict):
            yield f"  {label:<10} {_line(figures)}"
    yield f"  what helps {text(answer, 'help')}"
    if answer.get("elsewhere"):
        yield (
            f"             {text(answer, 'elsewhere')}: "
            f"tunnel why {text(answer, 'id')}, there."
        )


def why_line(answer: Fields, where: str) -> str:
    """Return the line of one connection among others."""
    sent, received = number(answer, "sent_bytes"), number(answer, "received_bytes")
    return (
        f"{text(answer, 'id'):<16}{text(answer, 'user'):<14}{size_text(sent):>9} out "
        f"{size_text(received):>9} in  {text(answer, 'now'):<8}  {_minute(answer)}"
        f"  [{where}]"
    )


def _named(answer: Fields, key: str, label: str) -> list[str]:
    value = answer.get(key)
    return [f"{label} {value}"] if value else []


def _word(word: str) -> str:
    return WORDS.get(word, word)


def _minute(answer: Fields) -> str:
    shares = answer.get("minute")
    if not isinstance(shares, dict) or not shares:
        return "not looked at yet"
    parts = sorted(shares, key=lambda word: -number(shares, word))
    return ", ".join(f"{word} {number(shares, word):.0f} %" for word in parts)


def _line(figures: Fields) -> str:
    """Return the numbers of a TCP connection, without those that are not known."""
    said = [
        f"round trip {text(figures, 'rtt_ms')} ms ± {text(figures, 'rttvar_ms')}",
        f"window {size_text(number(figures, 'cwnd_bytes'))}",
        f"on its way {size_text(number(figures, 'unacked_bytes'))}",
    ]
    if figures.get("notsent_bytes") is not None:
        said.append(f"waiting {size_text(number(figures, 'notsent_bytes'))}")
    again = figures.get("repeated_percent")
    share = f" ({number(figures, 'repeated_percent'):.1f} %)" if again else ""
    said.append(f"sent again {text(figures, 'retransmits')}{share}")
    if rate := number(figures, "delivery_bytes_per_s"):
        least = "at least " if figures.get("app_limited") else ""
        said.append(f"carries {least}{size_text(rate)}/s")
    busy = number(figures, "busy_s")
    for key, label in (
        ("rwnd_limited_s", "its reader was full"),
        ("sndbuf_limited_s", "the send buffer was too small"),
    ):
        if busy and number(figures, key) > busy / 100:
            said.append(
                f"{label} {100 * number(figures, key) / busy:.0f} % of the time"
            )
    return ", ".join(said)
