"""Who may do what, and how a target is reached: no knowledge of links."""
