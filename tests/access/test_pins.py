"""Which keys a client takes for its server's, over changes and restarts."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING

import pytest
from support.private import mode_of

from tunnel.access.pins import Pins, forget_pin
from tunnel.proto.proofs import to_base64url

if TYPE_CHECKING:
    from pathlib import Path


def raw(word: str) -> bytes:
    return sha256(word.encode()).digest()


def pin(word: str) -> str:
    return to_base64url(raw(word))


def test_both_keys_are_taken_until_the_change_and_then_the_new_one_alone(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "pins"
    pins = Pins(pin("old"), folder)
    assert pins.match(pin("old"))
    assert not pins.match(pin("new"))
    pins.proved(pin("old"), raw("new"))
    for known in (pins, Pins(pin("old"), folder)):  # it, and its successor
        assert known.accepted == (pin("old"), pin("new"))
        assert known.match(pin("new"))
        assert not known.match(pin("other"))
    assert mode_of(folder / f"{pin('old')}.pin") == 0o600
    pins.proved(pin("new"), b"")
    for known in (pins, Pins(pin("old"), folder), Pins(pin("new"), folder)):
        assert known.accepted == (pin("new"),)
        assert not known.match(pin("old"))
    assert str(folder) in Pins(pin("old"), folder).why_not_its_own
    assert not Pins(pin("new"), folder).why_not_its_own


def test_an_announcement_that_ends_is_forgotten(tmp_path: Path) -> None:
    pins = Pins(pin("old"), tmp_path)
    pins.proved(pin("old"), raw("new"))
    pins.proved(pin("old"), raw("other"))
    assert Pins(pin("old"), tmp_path).accepted == (pin("old"), pin("other"))
    pins.proved(pin("old"), b"")
    assert Pins(pin("old"), tmp_path).accepted == (pin("old"),)
    assert list(tmp_path.iterdir()) == []
    pins.proved(pin("old"), raw("old"))  # the key in use is no news
    assert pins.accepted == (pin("old"),)


def test_an_old_line_is_followed_over_many_changes_and_never_in_a_circle(
    tmp_path: Path,
) -> None:
    for number in range(5):
        pins = Pins(pin("0"), tmp_path)
        assert pins.current == pin(str(number))
        pins.proved(pin(str(number)), raw(str(number + 1)))
        pins.proved(pin(str(number + 1)), b"")
    assert Pins(pin("0"), tmp_path).accepted == (pin("5"),)
    (tmp_path / f"{pin('5')}.pin").write_text(f"changed {pin('0')}")
    (tmp_path / f"{pin('5')}.pin").chmod(0o600)
    assert len(Pins(pin("0"), tmp_path).accepted) == 1


def test_a_line_that_is_given_anew_counts_as_it_is(tmp_path: Path) -> None:
    pins = Pins(pin("old"), tmp_path)
    pins.proved(pin("old"), raw("new"))
    pins.proved(pin("new"), b"")
    forget_pin(pin("old"), tmp_path)
    assert Pins(pin("old"), tmp_path).accepted == (pin("old"),)


@pytest.mark.parametrize("text", ["", "next", "next x", "changed ../../x", "gone A B"])
def test_a_file_of_no_use_is_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / f"{pin('old')}.pin").write_text(text)
    (tmp_path / f"{pin('old')}.pin").chmod(0o600)
    assert Pins(pin("old"), tmp_path).accepted == (pin("old"),)


def test_a_file_that_others_may_write_is_not_believed(tmp_path: Path) -> None:
    (tmp_path / f"{pin('old')}.pin").write_text(f"next {pin('evil')}")
    (tmp_path / f"{pin('old')}.pin").chmod(0o666)
    assert Pins(pin("old"), tmp_path).accepted == (pin("old"),)


def test_what_cannot_be_saved_holds_for_this_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    pins = Pins(pin("old"), tmp_path / "file" / "pins")
    pins.proved(pin("old"), raw("new"))
    assert pins.accepted == (pin("old"), pin("new"))
    assert "pin.not_saved" in caplog.messages


def test_without_a_pin_or_a_folder_nothing_is_kept() -> None:
    pins = Pins(None)
    pins.proved(pin("old"), raw("new"))
    assert pins.accepted == ()
    pins = Pins(pin("old"))
    pins.proved(pin("old"), raw("new"))
    assert pins.accepted == (pin("old"), pin("new"))
