"""`python -m enforcer` is the command."""

from enforcer.cli import main

main()
