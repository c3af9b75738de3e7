"""One seed for every random choice of a run, printed so that a run can be repeated."""

from __future__ import annotations

import os
import random
import signal

import pytest
from hypothesis import HealthCheck, Phase, settings

# Importing hypothesis also makes trio's scheduler deterministic under pytest-trio.

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


def pytest_report_header(config: pytest.Config) -> str:
    return (
        f"hypothesis: profile {settings.get_current_profile_name()}, "
        f"repeat with --hypothesis-seed={config.option.hypothesis_seed}"
    )
