"""`python -m crlsr` is `crlsr`."""
import sys

from crlsr.app.cli import main

if __name__ == "__main__":
    sys.exit(main())
