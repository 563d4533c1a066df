"""Text for W&B without the keys and passwords that a program may have printed."""

from __future__ import annotations

import os
import re
from functools import cache

HIDDEN = "***"
MIN_LENGTH = 8
"""Shorter values of variables occur in any text."""
_SECRET_NAMES = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL", re.IGNORECASE)
_SECRET_FORMS = re.compile(
    r"\bhf_\w{16,}"  # Hugging Face
    r"|\b(?:sk|pk|rk)-[\w-]{16,}"  # OpenAI and others
    r"|\bgh[opsur]_\w{16,}|\bgithub_pat_\w{16,}|\bglpat-[\w-]{16,}"
    r"|\bwandb_v\d_\w{16,}"
    r"|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"
    r"|\bxox[abprs]-[\w-]{10,}"  # Slack
    r"|(?<=://)[^\s/:@]*:[^\s/@]+(?=@)"  # user:password@host
    r"|(?<=bearer )[\w.~+/=-]{16,}"
    r"|(?<=basic )[\w+/=]{16,}"
    r"|(?<=password=)[^\s&\"',;]+|(?<=password: )[^\s\"',;]+"
    r"|(?<=secret=)[^\s&\"',;]+|(?<=api_key=)[^\s&\"',;]+|(?<=access_token=)[^\s&\"',;]+",
    re.IGNORECASE,
)


def redact(text: str) -> str:
    """The text with stars in place of what looks like a key or a password, and of the values of this process's
    variables whose names say that they hold one."""
    for value in _secret_values():
        text = text.replace(value, HIDDEN)
    return _SECRET_FORMS.sub(HIDDEN, text)


@cache
def _secret_values() -> tuple[str, ...]:
    """The longest first: one may be a part of another. A path to a file of keys is no secret."""
    named = {value for name, value in os.environ.items() if _SECRET_NAMES.search(name)}
    return tuple(sorted((v for v in named if len(v) >= MIN_LENGTH and not v.startswith(("/", "~"))), key=len)[::-1])
