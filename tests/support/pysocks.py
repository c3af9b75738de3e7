"""PySocks, which has no types; by name it would be the folder ``tests/socks`` here."""

from __future__ import annotations

import importlib

socks = importlib.import_module("socks")
