"""The two roles: center-client and center-server."""
