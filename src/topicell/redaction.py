"""Passwords and tokens are removed from every text that is shown, logged or recorded."""

from __future__ import annotations

import logging
import re

_PASSWORD = re.compile(r"(:/{1,3}[^\s:/@]*):\S*@")
"""The password in ``SCHEME://USER:PASSWORD@HOST``; it may contain ``@``. Some libraries print an
address with one slash."""
_TOKEN = re.compile(r"(https?:/{1,2})[^\s:/@]+@")
"""The token in ``https://TOKEN@HOST``: a web server, unlike a database, takes no name alone."""
_SECRET_FIELD = re.compile(
    r"(?i)([?&;][^\s=?&;]*(?:pass|pwd|token|secret|credential|signature|api_?key|odbc_connect)"
    r"[^\s=?&;]*=)[^\s&]*"
)
"""Secret fields after the question mark, and the ODBC string, which can hold any field."""


def without_password(text: str) -> str:
    """Return a text without the passwords and tokens of the addresses in it."""
    cleaned = _PASSWORD.sub(r"\1:***@", text)
    cleaned = _TOKEN.sub(r"\1***@", cleaned)
    return _SECRET_FIELD.sub(r"\1***", cleaned)


class RedactingFormatter(logging.Formatter):
    """Format log records without passwords, those of Hydra and other libraries too."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the formatted record."""
        return without_password(super().format(record))
