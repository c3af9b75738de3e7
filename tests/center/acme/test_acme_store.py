"""The files of ACME: whole, private, and read with faults."""

from __future__ import annotations

import json
import logging
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
import trustme

from tunnel.access.host_certificates import new_key
from tunnel.center.acme.plan import WEEK_S, Asked, Fault
from tunnel.center.acme.store import Store
from tunnel.errors import StateError

if TYPE_CHECKING:
    from pathlib import Path

NOW = time.time()
URL = "https://acme.example.net/directory"


def chain(*names: str, ended: bool = False) -> str:
    until = datetime.now(UTC) - timedelta(days=1) if ended else None
    leaf = trustme.CA().issue_cert(*names, not_after=until)
    return "".join(pem.bytes().decode() for pem in leaf.cert_chain_pems)


def loaded(folder: Path, url: str = URL) -> Store:
    store = Store(folder, url)
    store.load(NOW)
    return store


def test_what_is_kept_is_there_after_a_restart(tmp_path: Path) -> None:
    store = loaded(tmp_path)
    store.keep("a.net", new_key(), chain("a.net"))
    store.keep("*.b.net", new_key(), chain("*.b.net"))
    store.ledger.book("a.net", "alice", NOW)
    store.ledger.failed("c.net", "why", NOW, 0.5)
    store.keep_ledger()
    again = loaded(tmp_path)
    assert again.held == store.held
    assert set(again.held) == {"a.net", "*.b.net"}
    assert again.ledger == store.ledger


def test_all_files_are_private(tmp_path: Path) -> None:
    store = loaded(tmp_path)
    store.account_key()
    store.keep("a.net", new_key(), chain("a.net"))
    store.keep_ledger()
    files = list(store.folder.iterdir())
    assert len(files) == 3
    for path in files:
        assert path.stat().st_mode & 0o777 == 0o600
    assert store.folder.stat().st_mode & 0o777 == 0o700
    assert store.folder.parent.stat().st_mode & 0o777 == 0o700


def test_the_key_of_the_account_stays(tmp_path: Path) -> None:
    key = loaded(tmp_path).account_key()
    assert loaded(tmp_path).account_key() == key


def test_another_authority_has_other_files(tmp_path: Path) -> None:
    store = loaded(tmp_path)
    store.keep("a.net", new_key(), chain("a.net"))
    assert not loaded(tmp_path, URL + "-of-tests").held


@pytest.mark.parametrize("names", [("b.net",), ("*.a.net",)])
def test_a_certificate_for_another_name_is_not_kept(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    store = loaded(tmp_path)
    with pytest.raises(StateError, match="not for"):
        store.keep("a.net", new_key(), chain(*names))
    with pytest.raises(StateError, match="no certificate"):
        store.keep("a.net", new_key(), "nothing")
    assert not store.held
    assert not store.folder.exists()


def test_what_has_ended_or_is_damaged_is_not_held(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = loaded(tmp_path)
    store.keep("a.net", new_key(), chain("a.net", ended=True))
    store.keep("b.net", new_key(), chain("b.net"))
    store.path_of("b.net").write_text("half of a")
    store.keep("c.net", new_key(), chain("c.net"))
    store.path_of("c.net").chmod(0o666)
    with caplog.at_level(logging.WARNING):
        assert not loaded(tmp_path).held
    said = [record.message for record in caplog.records]
    assert len(said) == 2


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"form": 2}', '{"form": 1, "asked": 3}', "[" * 100_000,
     '{"form": 1, "asked": {"a.net": ["alice", NaN]}, "faults": {}, "closed_until": 0}',
     '{"form": 1, "asked": {"a.net": ["alice", "x"]}, "faults": {}, "closed_until": 0}',
     '{"form": 1, "asked": {}, "faults": {"a": [1, 2]}, "closed_until": 0}',
     " " * 2_000_000],
)  # fmt: skip
def test_a_damaged_ledger_closes_for_new_names_and_says_so(
    tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = loaded(tmp_path).folder
    folder.mkdir(parents=True)
    (folder / "ledger.json").write_text(text)
    (folder / "ledger.json").chmod(0o600)
    with caplog.at_level(logging.WARNING):
        store = loaded(tmp_path)
    assert store.ledger.closed_until == NOW + WEEK_S
    assert any(record.getMessage() == "acme.state" for record in caplog.records)
    # Neither does a restart open it, nor put it off.
    again = Store(tmp_path, URL)
    again.load(NOW + 100)
    assert again.ledger.closed_until == NOW + WEEK_S
    assert (folder / "ledger.damaged").read_text() == text


def test_times_of_a_clock_that_was_wrong_count_from_now(tmp_path: Path) -> None:
    store = loaded(tmp_path)
    far = NOW + 10 * 365 * 86_400
    store.ledger.asked["a.net"] = Asked("alice", far)
    store.ledger.faults["a.net"] = Fault(3, far, "why")
    store.ledger.closed_until = far
    store.keep_ledger()
    ledger = loaded(tmp_path).ledger
    assert ledger.asked["a.net"].at == NOW
    assert ledger.faults["a.net"].again_at <= NOW + WEEK_S
    assert ledger.closed_until == NOW + WEEK_S


def test_a_ledger_that_is_whole_says_what_it_said(tmp_path: Path) -> None:
    store = loaded(tmp_path)
    store.ledger.book("a.net", "alice", NOW)
    store.keep_ledger()
    said = json.loads((store.folder / "ledger.json").read_text())
    assert said["asked"] == {"a.net": ["alice", NOW]}


def test_a_damaged_key_of_the_account_is_said(tmp_path: Path) -> None:
    store = loaded(tmp_path)
    store.account_key()
    (store.folder / "account.pem").write_text("half a key")
    with pytest.raises(StateError) as caught:
        store.account_key()
    assert "mv " in caught.value.fix
