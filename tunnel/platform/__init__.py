"""What one operating system can do and another cannot: nothing else here knows one.

    sockets     options of TCP, what the kernel knows of a connection, epoll
    files       locks, modes, folders, files that are opened with care, pipes
    process     signals, descriptors, the name in ``ps``, the clock

Each function has one meaning on every system. Where a system cannot do it or cannot
tell, the docstring says what happens instead. Linux is where all of it is tested.
"""
