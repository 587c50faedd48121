"""Typed identifiers. All are opaque: nothing about a person or a firm can be read off them."""

from __future__ import annotations

import re
import secrets
from typing import Final, NewType

from boltz_protocol.errors import MalformedMessage

ClientId = NewType("ClientId", str)
ModelId = NewType("ModelId", str)
RoundId = NewType("RoundId", str)
SessionId = NewType("SessionId", str)
KeyId = NewType("KeyId", str)

# 128 random bits in hex: collisions do not happen, and every language has hex.
_RANDOM_ID: Final = re.compile(r"[0-9a-f]{32}")
# A name that fits a URI path segment, a file name and a metric label.
_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?")


def _random_id() -> str:
    return secrets.token_hex(16)


def new_client_id() -> ClientId:
    """A fresh random client id (32 lower-case hex digits)."""
    return ClientId(_random_id())


def new_round_id() -> RoundId:
    """A fresh random round id (32 lower-case hex digits)."""
    return RoundId(_random_id())


def new_session_id() -> SessionId:
    """A fresh random session id (32 lower-case hex digits)."""
    return SessionId(_random_id())


def new_key_id() -> KeyId:
    """A fresh random key id (32 lower-case hex digits)."""
    return KeyId(_random_id())


def _parsed(kind: str, pattern: re.Pattern[str], text: str) -> str:
    if pattern.fullmatch(text) is None:
        shown = text if len(text) <= 80 else text[:77] + "..."
        raise MalformedMessage(f"{shown!r} is not a {kind} ({pattern.pattern})", field=kind)
    return text


def parse_client_id(text: str) -> ClientId:
    """Check and type a client id. Raises: MalformedMessage."""
    return ClientId(_parsed("client_id", _RANDOM_ID, text))


def parse_round_id(text: str) -> RoundId:
    """Check and type a round id. Raises: MalformedMessage."""
    return RoundId(_parsed("round_id", _RANDOM_ID, text))


def parse_session_id(text: str) -> SessionId:
    """Check and type a session id. Raises: MalformedMessage."""
    return SessionId(_parsed("session_id", _RANDOM_ID, text))


def parse_key_id(text: str) -> KeyId:
    """Check and type a key id. Raises: MalformedMessage."""
    return KeyId(_parsed("key_id", _RANDOM_ID, text))


def parse_model_id(text: str) -> ModelId:
    """Check and type a model id: 1 to 63 of `a-z 0-9 . -`. Raises: MalformedMessage."""
    return ModelId(_parsed("model_id", _NAME, text))


def parse_name(kind: str, text: str) -> str:
    """Check an operator's, auditor's or mesh's name. Raises: MalformedMessage."""
    return _parsed(kind, _NAME, text)
