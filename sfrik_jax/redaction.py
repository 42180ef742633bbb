"""Secrets are kept out of what is written: passwords in addresses, tokens.

A command line is stored with a run, an error quotes what was typed, and a traceback
what a library said. All of them go through `redact`. What cannot, as it is read back,
is refused: a setting that holds a secret.
"""

import json
import logging
import os
import re
import sys
import threading
import traceback

HIDDEN = "***"
# The user's part of an address, "https://me:word@host", also of one that a path has
# made "https:/me:word@host".
ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+:/{1,2})[^\s/\"'<>]*@")
# Names of variables that hold secrets, such as WANDB_API_KEY and HF_TOKEN.
SECRET = re.compile(
    r"(API_?KEY|ACCESS_KEY|SECRET_KEY|PRIVATE_KEY|AUTH_KEY|TOKEN|SECRET|PASSWORD|PASSWD"
    r"|PASSPHRASE|COOKIE)$"
)
# Shorter values are words such as "1" and "none", which may stand anywhere.
LEAST = 6


def redact(text: str) -> str:
    """The text without passwords in addresses and values of secret variables."""
    text = ADDRESS.sub(rf"\1{HIDDEN}@", text)
    for value in _secrets():
        text = text.replace(value, HIDDEN)
    return text


def holds_secret(text: str) -> bool:
    """Whether a text holds a password in an address, or a secret variable's value."""
    return redact(text) != text


def _secrets() -> list[str]:
    """Values of secret variables, the longest first, also as JSON writes them.

    A variable that names a file, /run/secrets/token, is no secret itself.
    """
    values = {
        value
        for name, value in os.environ.items()
        if SECRET.search(name.upper())
        and len(value.strip()) >= LEAST
        and not value.startswith(("/", "~", "."))
    }
    forms = {form for value in values for form in (value, json.dumps(value)[1:-1])}
    return sorted(forms, key=len, reverse=True)


def install() -> None:
    """From here on tracebacks and warnings of this process are redacted too."""
    sys.excepthook = _told
    threading.excepthook = lambda args: _told(
        args.exc_type, args.exc_value, args.exc_traceback
    )
    for place in (logging.getLogger("sfrik"), logging.lastResort):
        if place is not None and _in_log not in place.filters:
            place.addFilter(_in_log)


def _told(kind, error, trace) -> None:
    text = "".join(traceback.format_exception(kind, error, trace))
    print(redact(text), end="", file=sys.stderr)


def _in_log(record: logging.LogRecord) -> bool:
    record.msg, record.args = redact(record.getMessage()), None
    return True
