"""Measurements: a script answers one question with a table, and asserts no speed."""
