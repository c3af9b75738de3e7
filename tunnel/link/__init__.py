"""One link in trio: its tasks, its streams, and the session it carries."""
