"""`python -m crlsr` is `crlsr`."""
from crlsr.app.cli import run

if __name__ == "__main__":
    run()
