"""All that speaks HTTP: web services by name, the proxy, a folder."""
