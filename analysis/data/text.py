"""Names and reasons of other people as one line of text, before each format escapes what it reads as its own."""

from __future__ import annotations

import unicodedata


def one_line(text: str) -> str:
    """Line breaks and tabs become spaces; a letter that would steer a terminal or turn the direction of writing is left
    out, and one that is none (half of a pair) is shown as �."""
    if text.isprintable() and "  " not in text:
        return text
    return "".join(map(_printable, " ".join(text.split())))


def _printable(letter: str) -> str:
    if letter.isprintable():
        return letter
    return "" if unicodedata.category(letter) in ("Cf", "Cc") else "�"
