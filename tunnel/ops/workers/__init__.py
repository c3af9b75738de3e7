"""Several processes that are one server, on one machine.

parent     starts them, opens what they listen on, and answers commands for all
worker     what one of them is told by the parent, and tells it
merged     the answers of all to one command, as one
"""
