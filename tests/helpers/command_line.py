"""The `teachwafer` command line, in this process."""

from __future__ import annotations

import sys

import pytest

from gateway.cli import main


class CommandLine:
    """Runs commands.

    Args:
        monkeypatch: Of the test.
        capsys: Of the test.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys

    def __call__(self, *arguments: object) -> tuple[int, str, str]:
        """Runs one command; returns exit code, standard output and standard error."""
        self._monkeypatch.setattr(sys, "argv", ["teachwafer", *map(str, arguments)])
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        captured = self._capsys.readouterr()
        return (ended.value.code or 0), captured.out, captured.err
