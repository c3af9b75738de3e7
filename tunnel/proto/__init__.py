"""The frame protocol without IO: bytes and the time go in, events and bytes come out.

Nothing here imports trio, a socket, a clock, a source of randomness or a logger.
"""
