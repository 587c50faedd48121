"""Fixtures of this folder."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from boltz_mesh.storage.postgres import Database
from tests.integration.coordinator.world import World, open_world


@pytest_asyncio.fixture
async def world(database: Database, tmp_path: Path) -> AsyncIterator[World]:
    """A mesh without gRPC on a fresh database."""
    async with open_world(database, tmp_path / "blobs") as opened:
        yield opened
