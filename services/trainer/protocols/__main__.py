"""Runs the command line of the protocols."""

import sys

from services.trainer.protocols.command import main

if __name__ == "__main__":
    sys.exit(main())
