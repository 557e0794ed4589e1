"""Structured logs: one JSON object a line, with the session's id where there is one."""

from __future__ import annotations

import json
import logging
import sys
import time

from aiohttp.http import HttpProcessingError
from aiohttp.web import RequestPayloadError

_QUIET = ("aioice", "aiortc", "aiohttp.access", "libav")


class JsonLines(logging.Formatter):
    """time, level, logger, message, and session and kind where a record has them; exceptions with their trace."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        entry = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        for name in ("session", "kind"):
            if hasattr(record, name):
                entry[name] = getattr(record, name)
        if record.exc_info:
            entry["trace"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)


class Plain(logging.Formatter):
    """The same for people."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, and a trace where there is one."""
        who = f" [{record.kind} {record.session}]" if hasattr(record, "session") and hasattr(record, "kind") else ""
        line = f"{time.strftime('%H:%M:%S', time.localtime(record.created))} {record.levelname.lower()}{who} {record.getMessage()}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def briefly(record: logging.LogRecord) -> bool:
    """A filter for aiohttp's server: what a client did wrong is one line, without the bytes it sent; our own faults keep their trace."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, (HttpProcessingError, RequestPayloadError)):
        record.levelno, record.levelname = logging.INFO, "INFO"
        record.msg, record.args = "a request cannot be read (%s)", (type(error).__name__,)
        record.exc_info = record.exc_text = None
    return True


def set_up(*, as_json: bool, verbose: bool = False) -> None:
    """Send the logs of this process to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if as_json else Plain())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    own = logging.getLogger("streamfix")
    own.handlers.clear()  # the command line's own handler would say warnings twice
    own.setLevel(logging.DEBUG if verbose else logging.INFO)
    logging.getLogger("aiohttp.server").addFilter(briefly)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.ERROR)
