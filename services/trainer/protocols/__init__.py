"""The protocols by which teachwafer is measured, each a module with one function `measure`.

`python -m services.trainer.protocols NAME --wafers SET.npz` runs one, `... suite` all of them on the development set,
`... report` writes the pages of `docs/quality` from their results. A result is a dictionary of JSON values, so that
pages can be written anew without measuring anew.
"""
