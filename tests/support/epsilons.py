"""What a program prints about epsilon: never without unit, neighbouring relation and delta.

`check_text` takes what people read, `check_document` what programs read, and `check_output` finds
out which of the two it has. Each returns how many epsilons it met, so that a test can tell that it
was not blind.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

#: A figure near the word: "epsilon 2.000", "epsilon spent   0.5", "an epsilon of 4", "unlimited".
_FIGURE: Final = re.compile(
    r"(?<!-)(?<!no )\bepsilons?\b(?!-)(?!\")[^\d\n;]{0,60}?"
    r"(?:\b\d|\bunlimited\b|\bwithout bound\b)",
    re.I,
)
_DELTA: Final = re.compile(r"\bdelta\b[ =:]*(?:of )?\d", re.I)
_UNIT: Final = re.compile(
    r"\bone (?:client|client-period|desk|record)\b|\bunit: |\bunit\b *= *\"|\bper client\b", re.I
)
_RELATION: Final = re.compile(
    r"contribution[- ](?:set[- ]to[- ]zero|replaced)|set to zero|replaced by|relation: "
    r"|add-or-remove-one-record",
    re.I,
)
#: A flag or a setting that is given back to whoever wrote it ("--epsilon 0: give a number",
#: "epsilon -1 must be a positive number; 2.0 would do") claims nothing.
_SETTING: Final = re.compile(
    r"--epsilon[-a-z]*[ =]\S+|\bepsilon -?\S+ must be a positive number; \S+ would do"
    r"|\bepsilon 2\.0 and rounds 100 would do|\bepsilon = 2\.0 and delta = \S+ would do"
)
_STATED: Final = ("delta", "unit", "relation")


def check_text(text: str) -> int:
    """Hold every paragraph that tells an epsilon to what it must say. Returns how many there are.

    A paragraph may lean on a heading that ends in a colon or on a sentence about "all epsilons".
    """
    if text.startswith("Usage:"):
        return 0  # help explains settings; it tells no result
    plain = _SETTING.sub("", text)
    paragraphs = re.split(r"\n[ \t]*\n", plain)
    general = "\n".join(part for part in paragraphs if re.search(r"\ball epsilons\b", part, re.I))
    told = 0
    for number, paragraph in enumerate(paragraphs):
        figures = _FIGURE.findall(paragraph)
        if not figures:
            continue
        told += len(figures)
        before = paragraphs[number - 1] if number else ""
        scope = "\n".join((before, paragraph, general))
        for name, pattern in (("delta", _DELTA), ("unit", _UNIT), ("relation", _RELATION)):
            assert pattern.search(scope), f"an epsilon without its {name}:\n{paragraph}"
    return told


def check_document(document: Any) -> int:
    """Hold every figure under a name with "epsilon" in it to its object or one around it."""
    told = 0
    for path, stated in _figures(document, frozenset(), ""):
        missing = [name for name in _STATED if name not in stated]
        assert not missing, f"{path} has no {missing}"
        told += 1
    return told


def check_page(page: str) -> int:
    """An HTML page, by the text that a reader sees in it."""
    blocks = re.sub(r"</(?:p|table|section|figure|svg|h\d|div|ul|title|text)>", "\n\n", page)
    blocks = re.sub(r"<(?:style|script)\b.*?</(?:style|script)>", "", blocks, flags=re.S)
    return check_text(html.unescape(re.sub(r"<[^>]*>", " ", blocks)))


def check_output(printed: str) -> int:
    """What a command wrote: one JSON document, one a line, or text."""
    try:
        return check_document(json.loads(printed))
    except json.JSONDecodeError:
        pass
    try:
        return sum(check_document(json.loads(line)) for line in printed.splitlines() if line)
    except json.JSONDecodeError:
        return check_text(printed)


def _figures(found: Any, stated: frozenset[str], path: str) -> Iterator[tuple[str, frozenset[str]]]:
    if isinstance(found, list):
        for item in found:
            yield from _figures(item, stated, f"{path}[]")
    if not isinstance(found, Mapping):
        return
    here = stated | {name for name in _STATED if any(name in key for key in found)}
    for key, value in found.items():
        where = f"{path}.{key}"
        if "epsilon" in key and isinstance(value, int | float) and not isinstance(value, bool):
            yield where, here
        yield from _figures(value, here, where)
