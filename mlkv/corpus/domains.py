"""Text of two domains that is on every machine: the standard library's code, and the prose in it.

Prose are docstrings, comments and the topics of Python's help; code is what is left. Both come from the modules that a
corpus of the standard library holds out, so that no model that is trained here has seen them.
"""

from __future__ import annotations

import ast
import io
import tokenize
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from inspect import cleandoc

from ..context import StepFailed
from ..recipes import CorpusRecipe
from .documents import documents, identifying_files
from .found_files import content_digest, file_digest

LIBRARY = CorpusRecipe()
"""Its source is the standard library."""
FEWEST = 200
"""Characters of a text, as less is no text of a domain."""


@dataclass(frozen=True)
class DomainTexts:
    code: tuple[str, ...]
    prose: tuple[str, ...]


@lru_cache(maxsize=1)
def library_texts(held_out: float) -> DomainTexts:
    """Of the documents that a corpus of the standard library with this share holds out."""
    recipe = CorpusRecipe(held_out=held_out)
    parted = [code_and_prose(document.text) for document in documents(recipe) if document.held_out]
    code, prose = (tuple(text for text in texts if len(text) >= FEWEST) for texts in zip(*parted, strict=True))
    return DomainTexts(code, prose)


def check_library(planned: str) -> None:
    """Raises StepFailed where this Python's standard library is not the one with this digest."""
    if content_digest(identifying_files(LIBRARY), file_digest) != planned:
        raise StepFailed("this Python's standard library is not the one that was planned; run the sweep's line again")


def code_and_prose(text: str) -> tuple[str, str]:
    """The two parts of a module's source. What is no Python is prose."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes that a later Python refuses
            tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return "", text
    lines = text.splitlines()
    prose = dict(_docstrings(tree))
    found = {line: cleandoc(lines_of) for line, (_, lines_of) in prose.items()}
    comments = {line: comment for line, comment in _comments(text) if lines[line - 1].lstrip().startswith("#")}
    without = {line for first, (last, _) in prose.items() for line in range(first, last + 1)} | comments.keys()
    code = "\n".join(line for number, line in enumerate(lines, 1) if number not in without)
    return code + "\n", _joined(found, comments)


def _docstrings(tree: ast.Module) -> Iterator[tuple[int, tuple[int, str]]]:
    """First line → last line and text."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node, clean=False)
            if text is not None:
                yield node.body[0].lineno, (node.body[0].end_lineno or 0, text)


def _comments(text: str) -> Iterator[tuple[int, str]]:
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.COMMENT:
                yield token.start[0], token.string.lstrip("#").strip()
    except (tokenize.TokenError, SyntaxError):  # what the parser took and the tokenizer does not
        return


def _joined(docstrings: dict[int, str], comments: dict[int, str]) -> str:
    """In the order of their lines; comments on lines that follow each other are one paragraph."""
    paragraphs: list[str] = []
    before = -1
    for line, text in sorted({**docstrings, **comments}.items()):
        if line in comments and line == before + 1 and paragraphs:
            paragraphs[-1] += f"\n{text}"
        else:
            paragraphs.append(text)
        before = line if line in comments else -1
    return "\n\n".join(paragraphs) + "\n"
