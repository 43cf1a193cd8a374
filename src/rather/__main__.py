"""`python -m rather` is the command line."""

from rather.cli import main

main()
