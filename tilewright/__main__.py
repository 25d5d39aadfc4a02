"""`python -m tilewright` is the command line."""

from tilewright.cli import app

app()
