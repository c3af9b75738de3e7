"""What a process tells Prometheus, and whether it lives and is ready."""
