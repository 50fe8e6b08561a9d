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

_SECRET = r"(?:passw|passphrase|pwd|token|secret|credential|api_?key|access_?key|private_?key)"
_ASSIGNED = re.compile(
    rf"""(?ix) ({_SECRET}[\w.-]*["']? \s*\]?\s* (?::\s*[\w.|\ \[\]]+?)? \s*[:=]\s* [bfru]{{0,2}})
    (?: \"{{3}}.*?\"{{3}} | '{{3}}.*?'{{3}} | (["'])(?:(?!\2)[^\\\n]|\\.)+\2
    | [\w/+.-]{{16,}}={{0,2}}(?=[\ \t;]*$|[\ \t]+\#) )""",
    re.MULTILINE,
)
"""A name of a secret with its value: a text in quotes, or a long word to the end of the line."""
_SETTING = re.compile(rf"(?im)^(.{{0,200}}{_SECRET}[\w.-]{{0,80}}[\"']?[ \t]*[:=][ \t]*)[^\s#].*$")
"""The same in a file of settings, where values have no quotes."""
_KEY = re.compile(
    r"\b(?:gh[pousr]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{20,}|hf_\w{20,}|xox[abprs]-[\w-]{10,}"
    r"|(?:AKIA|ASIA)[A-Z0-9]{16}|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]+|sk-[\w-]{20,}|AIza[\w-]{35})"
    r"|(?<=Bearer )[\w.~+/-]{16,}"
)
"""Tokens and keys that their form gives away: GitHub, GitLab, Hugging Face, Slack, AWS, JWT, …"""
_PRIVATE_KEY = re.compile(
    r"(-----BEGIN [A-Z ]*PRIVATE KEY-----).*?(-----END [A-Z ]*PRIVATE KEY-----)", re.DOTALL
)


def without_secrets(text: str, *, settings: bool = False) -> str:
    """Return a text, such as source code, without the secrets that can be recognised.

    Passwords of addresses, values of names such as ``password`` and ``API_KEY``, tokens of known
    forms and private keys are masked.

    Parameters
    ----------
    text
        Code, or a file of settings.
    settings
        Whether it is a file of settings, such as YAML, where values have no quotes.

    Examples
    --------
    >>> without_secrets('API_KEY = "abc"; token = next_token(page)')
    'API_KEY = ***; token = next_token(page)'
    """
    text = _PRIVATE_KEY.sub(r"\1 *** \2", _KEY.sub("***", without_password(text)))
    text = _ASSIGNED.sub(r"\1***", text)
    return _SETTING.sub(r"\1***", text) if settings else text


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
