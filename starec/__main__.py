"""`python -m starec` is the `starec` command."""

from starec_env.cli import main

main()
