"""Where virtual TCP connections and datagrams leave the tunnel."""
