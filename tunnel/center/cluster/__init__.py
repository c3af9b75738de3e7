"""Several center-servers that act as one: workers of one machine, nodes of a cluster."""
