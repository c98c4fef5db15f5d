"""The command line without an installed `teachwafer`: `python -m gateway.cli`."""

from gateway.cli.app import main

main()
