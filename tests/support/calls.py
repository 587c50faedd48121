"""Calls whose errors are typed, and the expectation of one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
import pytest

from boltz_protocol.errors import MeshError
from boltz_protocol.status import from_rpc_error

T = TypeVar("T")


@contextlib.contextmanager
def typed() -> Any:
    """Errors of calls leave as the typed errors that the server sent."""
    try:
        yield
    except grpc.RpcError as error:
        raise from_rpc_error(error) from error


async def answered(call: Awaitable[T]) -> T:
    with typed():
        return await asyncio.wait_for(call, 30)


@dataclass(slots=True)
class Refusal:
    """What `refused` caught."""

    error: MeshError | None = None

    @property
    def metadata(self) -> dict[str, str]:
        assert self.error is not None
        return self.error.metadata


@contextlib.contextmanager
def refused(kind: type[MeshError], match: str | None = None) -> Any:
    """Expect this typed error, sent by the server under its own gRPC code."""
    caught = Refusal()
    with pytest.raises(kind, match=match) as raised, typed():
        yield caught
    error = raised.value
    assert type(error) is kind, f"{error!r} is not exactly {kind.__name__}"
    assert error.metadata["grpc_code"] == kind.status
    caught.error = error
