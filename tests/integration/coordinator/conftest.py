"""Fixtures of this folder."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest_asyncio
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from boltz_mesh.coordinator.parts import Parts
from boltz_mesh.rounds.plan_policy import PrivacyPolicy
from boltz_mesh.services.attempts import Attempts
from boltz_mesh.services.clock import system_clock
from boltz_mesh.services.identity.authority import Authority, new_root
from boltz_mesh.services.keyring import KeyRing
from boltz_mesh.storage.directory_blobs import DirectoryBlobs
from boltz_mesh.storage.listen import Listener
from boltz_protocol.key_wrap import KeyEncryptionKey
from tests.integration.coordinator.faults import FaultyDatabase
from tests.integration.coordinator.world import REPLICA, World


@pytest_asyncio.fixture
async def world(database_url: str, tmp_path: Path) -> AsyncIterator[World]:
    """A mesh without gRPC on a fresh database."""
    async with (
        await FaultyDatabase.open(database_url) as database,
        open_world(database, tmp_path / "blobs") as opened,
    ):
        yield opened


@contextlib.asynccontextmanager
async def open_world(database: FaultyDatabase, folder: Path) -> AsyncIterator[World]:
    database.faults = []
    now = datetime.now(UTC)
    key, root = new_root("demo", now=now, lifetime=timedelta(days=365))
    authority = Authority(mesh="demo", key=key, chain=[root], now=now)
    keyring = await KeyRing.open(database, authority, KeyEncryptionKey.generate(), system_clock)
    spans = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    with ThreadPoolExecutor(2) as heavy, ThreadPoolExecutor(2) as chunks:
        async with await Listener.open(database.url, replica_id=REPLICA) as listener:
            parts = Parts(
                database=database,
                listener=listener,
                keyring=keyring,
                attempts=Attempts(),
                blobs=DirectoryBlobs(folder),
                clock=system_clock,
                tracer=provider.get_tracer("test"),
                random=secrets.SystemRandom(),
                heavy=heavy,
                chunks=chunks,
                holder=REPLICA,
                policy=PrivacyPolicy(),
            )
            yield World(parts, database, spans)
