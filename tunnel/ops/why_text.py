"""Why a connection is slow, as people read it. Loads nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Fields = dict[str, object]

WORDS: Final = {
    "nothing": "nothing",
    "credit": "the other end's reader",
    "turn": "its turn on the link",
    "line": "the line",
    "rate": "the rate of its user",
    "local": "the program at this end, to take what came",
    "target": "the target, which was asked",
    "program": "the program that opened it, to send something",
    "link": "another link",
}


def why_lines(answer: Mapping[str, object], where: str = "") -> Iterator[str]:
    """Yield the lines about one connection; ``where`` names the process that tells."""
    end = "opened here" if answer["end"] == "opener" else "leaves here"
    about = [end, *_named(answer, "target", "to"), *_named(answer, "visitor", "for")]
    about += _named(answer, "local", "local end")
    first = f"{answer['id']}  {', '.join(about)}"
    yield f"{first}  ({where})" if where else first
    yield f"  now        waits for {_word(answer['now'])}"
    yield f"  minute     {_minute(answer)}"
    sent, received = number(answer, "sent_bytes"), number(answer, "received_bytes")
    yield f"  passed     {size(sent)} sent, {size(received)} received"
    yield (
        f"  here       {size(number(answer, 'unsent_bytes'))} unsent, "
        f"{size(number(answer, 'unread_bytes'))} not taken, "
        f"{size(number(answer, 'credit_bytes'))} of credit left"
    )
    for key, label in (("line", "line"), ("local_line", "local TCP")):
        figures = answer.get(key)
        if isinstance(figures, dict):
            yield f"  {label:<10} {_line(figures)}"
    yield f"  what helps {answer['help']}"
    if answer.get("elsewhere"):
        yield f"             {answer['elsewhere']}: tunnel why {answer['id']}, there."


def listed_line(answer: Mapping[str, object]) -> str:
    """Return the line of one connection among others."""
    sent, received = number(answer, "sent_bytes"), number(answer, "received_bytes")
    return (
        f"{answer['id']!s:<16}{answer['user']!s:<14}{size(sent):>9} out "
        f"{size(received):>9} in  {answer['now']!s:<8}  {_minute(answer)}"
    )


def _named(answer: Mapping[str, object], key: str, label: str) -> list[str]:
    value = answer.get(key)
    return [f"{label} {value}"] if value else []


def _word(word: object) -> str:
    return WORDS.get(str(word), str(word))


def _minute(answer: Mapping[str, object]) -> str:
    shares = answer.get("minute")
    if not isinstance(shares, dict) or not shares:
        return "not looked at yet"
    parts = sorted(shares.items(), key=lambda part: -float(part[1]))
    return ", ".join(f"{word} {float(share):.0f} %" for word, share in parts)


def _line(figures: Fields) -> str:
    """Return the numbers of a TCP connection, without those that are not known."""
    said = [
        f"round trip {figures['rtt_ms']} ms ± {figures['rttvar_ms']}",
        f"window {size(number(figures, 'cwnd_bytes'))}",
        f"on its way {size(number(figures, 'unacked_bytes'))}",
    ]
    if figures.get("notsent_bytes") is not None:
        said.append(f"waiting {size(number(figures, 'notsent_bytes'))}")
    again = figures.get("repeated_percent")
    share = f" ({number(figures, 'repeated_percent'):.1f} %)" if again else ""
    said.append(f"sent again {figures['retransmits']}{share}")
    if rate := number(figures, "delivery_bytes_per_s"):
        least = "at least " if figures.get("app_limited") else ""
        said.append(f"carries {least}{size(rate)}/s")
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


def number(answer: Mapping[str, object], key: str) -> float:
    """Return a number of an answer; 0 if it is not known."""
    value = answer.get(key)
    return value if isinstance(value, int | float) else 0


def size(count: float) -> str:
    """Return a number of bytes for a person to read."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
