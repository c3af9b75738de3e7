"""Several processes that are one server, on one machine.

parent     starts them, opens what they listen on, and answers commands for all
worker     what one of them is told by the parent, and tells it
running    one of them, as the parent sees it
commands   what a person asks: all workers are asked
merged     the answers of all to one command, as one
watched    what those ask who watch the server: Prometheus, and the page
uses       what users have at each worker, for all to hold against their limits
"""
