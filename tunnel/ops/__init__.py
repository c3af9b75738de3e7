"""Running it: the commands and what they print."""
