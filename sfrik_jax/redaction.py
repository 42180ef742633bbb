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
from collections.abc import Collection, Mapping
from typing import Any

HIDDEN = "***"
# The user's part of an address, "https://me:word@host", also of one that a path has
# made "https:/me:word@host". A password may hold a slash; ":8080/" is a port.
ADDRESS = re.compile(
    r"""([A-Za-z][A-Za-z0-9+.-]+:/{1,2})"""
    r"""(?:[^\s/:"'<>]*:(?!\d+/)[^\s"'<>]*|[^\s/"'<>]*)@"""
)
# Names of variables that hold secrets, such as WANDB_API_KEY and HF_TOKEN.
SECRET = re.compile(
    r"(API_?KEY|ACCESS_KEY|SECRET_KEY|PRIVATE_KEY|AUTH_KEY|TOKEN|SECRET|PASSWORD|PASSWD"
    r"|PASSPHRASE|COOKIE)$"
)
# Shorter values such as "1" and "none", and plain words such as "imagenet", may stand
# anywhere: to hide them would spoil messages and refuse good settings.
LEAST = 6
WORD = re.compile(r"[A-Z]?[a-z]{1,11}|[A-Z]{1,12}")


def redact(text: str) -> str:
    """The text without passwords in addresses and values of secret variables.

    Lines are to be joined after it: a key of several lines is found as it is.
    """
    return _without(_secrets(), text)


def redacted(data: Any) -> Any:
    """JSON data whose texts are redacted; keys and numbers stay as they are."""
    # The environment is read once, not for each text.
    return _without(_secrets(), data)


def _without(secrets: Collection[str], data: Any) -> Any:
    if isinstance(data, str):
        text = ADDRESS.sub(rf"\1{HIDDEN}@", data)
        for value in secrets:
            text = text.replace(value, HIDDEN)
        return text
    if isinstance(data, Mapping):
        return {key: _without(secrets, value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_without(secrets, value) for value in data]
    return data


def secret_in(text: str) -> str:
    """Which secret a text holds, in words without its value; "" for none."""
    if ADDRESS.sub(rf"\1{HIDDEN}@", text) != text:
        return "a password or a token in an address"
    names = (name for form, name in _secrets().items() if form in text)
    return next((f"the value of the variable {name}" for name in names), "")


def _secrets() -> dict[str, str]:
    """Names of secret variables by value, the longest first, also as JSON and Python
    write it.

    A variable that names a file, /run/secrets/token, is no secret itself.
    """
    found = {}
    for name, value in os.environ.items():
        value = value.strip()
        if SECRET.search(name.upper()) and _tells(value):
            for form in (value, json.dumps(value)[1:-1], repr(value)[1:-1]):
                found[form] = name
    return dict(sorted(found.items(), key=lambda item: len(item[0]), reverse=True))


def _tells(value: str) -> bool:
    """Whether a secret variable's value is a secret."""
    if len(value) < LEAST or WORD.fullmatch(value):
        return False
    # A key of base64 may begin with a slash, too.
    return not (value[0] in "/~." and os.path.exists(os.path.expanduser(value)))


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
