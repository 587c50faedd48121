"""Free texts of callers: short, and without characters that no database or terminal should get."""

from __future__ import annotations

import unicodedata

from boltz_protocol import limits
from boltz_protocol.errors import MalformedMessage


def check_text(field: str, text: str, *, least: int = 0) -> None:
    """Check a text that is kept for people: a name, a reason.

    PostgreSQL takes no zero byte in a text, and a terminal obeys escape sequences: no control
    characters, then.

    Raises: MalformedMessage naming the field.
    """
    if not least <= len(text) <= limits.MAX_NAME_CHARS:
        raise MalformedMessage(
            f"{field} has {len(text)} characters; {least} to {limits.MAX_NAME_CHARS} are allowed",
            field=field,
        )
    if any(unicodedata.category(character) == "Cc" for character in text):
        raise MalformedMessage(f"{field} holds a control character", field=field)
