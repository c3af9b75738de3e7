"""Reload: what runs takes over what its file says now; what is the same stays."""
