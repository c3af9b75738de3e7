"""How visitors and apps come in.

A front end is given a function that opens; it never sees a link.
"""
