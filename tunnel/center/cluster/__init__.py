"""Center-servers that act as one: workers of a machine, nodes of a cluster."""
