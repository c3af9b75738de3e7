"""The configuration file: one TOML for both sides, in the words of the flags."""
