"""Sockets and the operating system: nothing of the protocol, nothing of roles."""
