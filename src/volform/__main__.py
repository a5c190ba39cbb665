"""`python -m volform` is the command line."""

import sys

from volform.cli.command import main

if __name__ == "__main__":
    sys.exit(main())
