"""``python -m tunnel`` and the ``tunnel`` command."""

from __future__ import annotations

from typing import NoReturn

from tunnel.ops.hide import hide_secrets
from tunnel.ops.standard import secure_standard_files


def main() -> NoReturn:
    """Run the command line and exit with its status."""
    secure_standard_files()
    hide_secrets()
    # Only now what takes long to load: until here a secret may stand in `ps`.
    from tunnel.ops.cli import main as run

    run()


if __name__ == "__main__":
    main()
