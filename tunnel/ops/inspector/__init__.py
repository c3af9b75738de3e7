"""What an entry was asked and what it answered, kept to be looked at; see ``inspect``.

record     one request and its answer, as they came
store      all of them, within so many bytes; the oldest is forgotten
watcher    what the HTTP engine tells of them
messages   what passes behind 101, if that is a WebSocket
masks      which values are hidden, and how they come back
bodies     bodies as people read them
shown      a record as JSON
har, curl  the same for other programs
replay     asks again what was asked
handlers   what the control socket answers
"""
