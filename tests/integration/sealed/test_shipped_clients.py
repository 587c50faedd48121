from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import numpy as np

from boltz_protocol.v1 import aggregator_pb2 as agg
from tests.integration.client.party import SIZE, Party, declare_sealed
from tests.integration.sealed.extractor import extract
from tests.integration.sealed.players import Tapped
from tests.integration.sealed.reading import read
from tests.support.clients import published, reached

#: From each of these on every connection breaks once.
PHASES = (
    agg.PHASE_SHARING_KEYS,
    agg.PHASE_COLLECTING,
    agg.PHASE_CHECKING_CONSISTENCY,
    agg.PHASE_UNMASKING,
    agg.PHASE_AGGREGATING,
    agg.PHASE_RELEASING,
    agg.PHASE_PUBLISHED,
)


async def test_what_is_sent_again_says_nothing_new(
    tapped: Tapped, model: str, tmp_path: Path
) -> None:
    """The library's own clients repeat what they said, and never mask a second vector."""
    async with AsyncExitStack() as stack:
        party = Party(tapped.mesh, tmp_path, stack)
        members = await party.add(3)
        await declare_sealed(party, model)
        round_id = await party.start(model)
        for first in range(4):
            await reached(tapped.mesh, round_id, *PHASES[first:])
            for member in members:
                member.proxy.cut()
        await published(tapped.mesh, round_id)
        mean = await party.weighted_mean(round_id, members)
        for member in members:
            assert member.task is not None
            member.task.cancel()
            await asyncio.gather(member.task, return_exceptions=True)
        assert all(member.proxy.connections > 1 for member in members)
    view = read(await tapped.tap.transcript(), tapped.mesh.name).within(round_id)
    extraction = extract(view)
    assert [label.number for label in extraction.labels] == [0, 0, 0]
    assert extraction.is_spanned_by([[1, 1, 1]])
    configuration = view.only.attempt.configuration
    sum_ = mean * configuration.scale * configuration.total_weight / configuration.max_weight
    # Each vector is rounded to whole units.
    np.testing.assert_allclose(extraction.combine([1, 1, 1]).values, np.full(SIZE, sum_), atol=3)
