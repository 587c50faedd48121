"""Pages of listings: sizes checked, tokens opaque."""

from __future__ import annotations

import base64
import binascii

from boltz_protocol import limits
from boltz_protocol.errors import LimitExceeded, MalformedMessage
from boltz_protocol.v1 import common_pb2

DEFAULT_PAGE_SIZE = 100


def page_size(page: common_pb2.Page) -> int:
    """Rows asked for. Raises: LimitExceeded above the cap."""
    if page.size > limits.MAX_LIST_PAGE:
        raise LimitExceeded(f"a page of {page.size} rows; the cap is {limits.MAX_LIST_PAGE}")
    return page.size or DEFAULT_PAGE_SIZE


def encode_token(key: str) -> str:
    """A token that goes on behind the row with this key."""
    return base64.urlsafe_b64encode(key.encode()).decode()


def decode_token(page: common_pb2.Page) -> str:
    """The key in a token; empty for the first page. Raises: MalformedMessage."""
    if len(page.token) > limits.MAX_NAME_CHARS:
        raise MalformedMessage("this is not a page token", field="page.token")
    try:
        key = base64.b64decode(page.token.encode(), altchars=b"-_", validate=True).decode("ascii")
    except (binascii.Error, ValueError) as error:
        raise MalformedMessage("this is not a page token", field="page.token") from error
    if not key.isprintable():
        raise MalformedMessage("this is not a page token", field="page.token")
    return key
