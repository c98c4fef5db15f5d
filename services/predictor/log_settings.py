"""What is logged, changed while the server runs, with the names that Triton has for it."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from services.common.errors import InvalidArgumentError, UnimplementedError

SWITCHES = {"log_info": logging.INFO, "log_warning": logging.WARNING, "log_error": logging.ERROR}
"""Settings that let lines of one severity through or not."""
VERBOSE, FORMAT, FILE = "log_verbose_level", "log_format", "log_file"
FORMATS = ("default", "ISO8601")

Value = bool | int | str


class LogSettings:
    """Lets log lines of this process through or not, by severity.

    Lines carry their time as ISO 8601 in any case: `log_format` is kept and answered, and changes nothing more.

    Args:
        root: Logger whose handlers are filtered. Default: the one of the whole process.
    """

    def __init__(self, root: logging.Logger | None = None) -> None:
        self._root = root or logging.getLogger()
        self._level_at_start = self._root.level or logging.INFO
        self._settings: dict[str, Value] = {
            FILE: "",
            **{name: severity >= self._level_at_start for name, severity in SWITCHES.items()},
            VERBOSE: int(self._level_at_start <= logging.DEBUG),
            FORMAT: FORMATS[0],
        }

    def settings(self) -> dict[str, Value]:
        """Returns all settings by name."""
        return dict(self._settings)

    def change(self, changes: Mapping[str, Value]) -> None:
        """Changes settings, all of them or none.

        Raises:
            InvalidArgumentError: There is no such setting, or no such value of it.
            UnimplementedError: It cannot be set from afar.
        """
        if not changes:
            return
        settings = dict(self._settings)
        for name, value in changes.items():
            settings[name] = _checked(name, value)
        self._settings = settings
        logging.getLogger(__name__).info("log settings changed", extra={"settings": settings})
        self._root.setLevel(self._lowest())
        for handler in self._root.handlers:
            if self._passes not in handler.filters:
                handler.addFilter(self._passes)

    def _lowest(self) -> int:
        if self._settings[VERBOSE]:
            return logging.DEBUG
        wanted = [severity for name, severity in SWITCHES.items() if self._settings[name]]
        return min(wanted, default=logging.CRITICAL)

    def _passes(self, record: logging.LogRecord) -> bool:
        """Returns whether a line is written."""
        if record.levelno < logging.INFO:
            return bool(self._settings[VERBOSE])
        if record.levelno >= logging.CRITICAL:
            return True
        severity = max(each for each in SWITCHES.values() if each <= record.levelno)
        return any(self._settings[name] for name, its_severity in SWITCHES.items() if its_severity == severity)


def _checked(name: str, value: Value) -> Value:
    """Returns a value of a setting."""
    field = f"settings.{name[:50]}"
    if name in SWITCHES:
        if not isinstance(value, bool):
            raise InvalidArgumentError(f"Expected true or false. Received: {value!r}.", field)
    elif name == VERBOSE:
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise InvalidArgumentError(f"Expected a whole number of at least 0. Received: {value!r}.", field)
    elif name == FORMAT:
        if value not in FORMATS:
            raise InvalidArgumentError(f"Expected a format out of {FORMATS}. Received: {value!r}.", field)
    elif name == FILE:
        if value:
            raise UnimplementedError(
                "Expected no log_file, because callers do not choose files of the server. Received: one. Logs go to "
                "standard error; send them where you want them."
            )
    else:
        raise InvalidArgumentError(
            f"Expected a log setting out of {', '.join((*SWITCHES, VERBOSE, FORMAT))}. Received: {name[:50]!r}.", field
        )
    return value
