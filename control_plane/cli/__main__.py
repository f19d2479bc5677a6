"""``python -m control_plane.cli`` is ``midcourse``."""

from control_plane.cli.main import main

if __name__ == "__main__":
    main()
