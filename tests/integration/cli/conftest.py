"""The command, ready to be run."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.integration.cli.running import Cli, commands


@pytest_asyncio.fixture(scope="session")
async def cli(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cli]:
    """Runs commands, warm."""
    async with commands(tmp_path_factory.mktemp("cli")) as running:
        yield running
