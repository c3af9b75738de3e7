"""One seed for every random choice of a run, printed so that a run can be repeated."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path
from typing import Final

import pytest
from hypothesis import HealthCheck, Phase, settings
from support.attacks import rows_of_tests

# Importing hypothesis also makes trio's scheduler deterministic under pytest-trio.

TESTS: Final = Path(__file__).parent

_COMMON = settings(
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("fast", _COMMON, max_examples=50, stateful_step_count=40)
settings.register_profile("deep", _COMMON, max_examples=2_000, stateful_step_count=100)
settings.register_profile(
    "hasty", settings.get_profile("fast"), database=None, phases=[Phase.generate]
)
"""To see that a test fails, not why: no shrinking, nothing kept (see mutants.py)."""


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    wanted = "deep" if config.option.markexpr == "deep" else "fast"
    settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", wanted))
    if config.option.hypothesis_seed is None:
        config.option.hypothesis_seed = str(random.SystemRandom().getrandbits(32))
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        # Of a shell's background: what tests start would inherit it, and stay.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        # Of nohup: what tests start would inherit it, and never reload.
        signal.signal(signal.SIGHUP, lambda *_: None)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test with the rows of docs/attacks.md that it stands for."""
    known = rows_of_tests()
    for item in items:
        if TESTS in item.path.parents:
            file = item.path.relative_to(TESTS).as_posix()
            name = getattr(item, "originalname", item.name)
            for row in known.get(f"{file}::{name}", ()):
                item.add_marker(pytest.mark.attack(row=row))


def pytest_report_header(config: pytest.Config) -> str:
    return (
        f"hypothesis: profile {settings.get_current_profile_name()}, "
        f"repeat with --hypothesis-seed={config.option.hypothesis_seed}"
    )
