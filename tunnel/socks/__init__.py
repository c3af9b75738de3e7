"""The servers' halves of SOCKS 4, 4a and 5, without IO."""
