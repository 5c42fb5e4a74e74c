"""``python -m polyalign``: the command line."""

from polyalign.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
