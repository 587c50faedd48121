"""Fixtures of this folder."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from tests.integration.coordinator.world import FaultyDatabase, World, open_world


@pytest_asyncio.fixture
async def world(database_url: str, tmp_path: Path) -> AsyncIterator[World]:
    """A mesh without gRPC on a fresh database."""
    async with (
        await FaultyDatabase.open(database_url) as database,
        open_world(database, tmp_path / "blobs") as opened,
    ):
        yield opened
