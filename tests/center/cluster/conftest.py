"""A Redis for tests that share one, and one for each test that hurts it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.processes import Machine
from support.redis_server import RedisServer

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def shared_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    machine = Machine(tmp_path_factory.mktemp("home"))
    try:
        yield RedisServer(machine, tmp_path_factory.mktemp("redis"))
    finally:
        machine.close()


@pytest.fixture
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    machine = Machine(tmp_path_factory.mktemp("home"))
    try:
        yield RedisServer(machine, tmp_path_factory.mktemp("redis"))
    finally:
        machine.close()
