"""``python -m tunnel`` and the ``tunnel`` command."""

from tunnel.ops.cli import main

if __name__ == "__main__":
    main()
