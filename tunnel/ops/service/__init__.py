"""``tunnel service``: a unit of systemd that starts ``serve`` or ``up``."""
