"""The page of a running process: what it does, live, and a few things to do about it.

port    listens, and answers: the files of the page, its questions and its streams
gate    who is heard: the holder of the token, on the page itself
live    what has changed since the last second
pages/  the page, as browsers load it

It is a second mouth of the control socket (``ops/control``): the same handlers, under
the same names. Loaded only where ``--dashboard`` asks for it.
"""
