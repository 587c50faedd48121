"""The own ledger is charged before anything leaves, once, and within the owner's budget."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest

from boltz_client import MeshClient, NoticeKind
from boltz_client.ledger import Ledger
from boltz_protocol import messages as m
from boltz_protocol.encoding import plan_encoding
from boltz_protocol.errors import BudgetExceeded, RoundRefused, Unavailable
from boltz_protocol.gaussian_dp import epsilon_of_releases
from tests.integration.client.conftest import ANY_MODE, Clients
from tests.integration.client.heard import Heard
from tests.integration.client.test_rounds import join_in, toward
from tests.support.mini_mesh import MODEL, MiniMesh


def noisy(noise_multiplier: float) -> Callable[[m.RoundConfiguration], m.RoundConfiguration]:
    def change(configuration: m.RoundConfiguration) -> m.RoundConfiguration:
        encoding = plan_encoding(
            clip_norm_l2=configuration.clip_norm,
            noise_multiplier=noise_multiplier,
            cohort_max=configuration.roster_size,
            coordinates=configuration.coordinates,
        )
        return replace(
            configuration,
            scale=2.0**encoding.scale_log2,
            bound_l2=encoding.bound_l2,
            noise_multiplier=noise_multiplier,
            privacy=m.PRIVACY_CLIENT_DP,
            epsilon_budget=50.0,
            delta=1e-5,
        )

    return change


async def test_a_round_that_overdraws_the_own_budget_is_declined(
    mesh: MiniMesh, clients: Clients
) -> None:
    # One round at noise multiplier 1 costs 4.89, two cost 7.3, whatever the mesh's budget says.
    client = await clients.open(owner=replace(ANY_MODE, epsilon_budget=6.0))
    heard = Heard()
    task = join_in(client, toward(1.0), rounds=2, notify=heard)
    first = await mesh.start_round(1, change=noisy(1.0))
    await mesh.finish_round()
    await heard.until(NoticeKind.ENDED)
    second = await mesh.start_round(1, change=noisy(1.0))
    error = (await heard.until(NoticeKind.DECLINED)).error
    assert isinstance(error, BudgetExceeded)
    assert "the owner allows 6" in error.message
    await mesh.wait(lambda: bool(second.declined))
    assert list(second.declined.values()) == ["BUDGET_EXCEEDED"]
    summary = await task
    assert (summary.counted, summary.declined, summary.refused) == (1, 1, 1)
    assert client.ledger.has(first.configuration.round_id, 1)
    assert not client.ledger.has(second.configuration.round_id, 1)
    assert client.ledger.spent(MODEL, 1e-6) == epsilon_of_releases(1.0, 1e-6, 1)


async def test_the_charge_comes_before_the_first_byte_and_once(
    mesh: MiniMesh, clients: Clients
) -> None:
    path = await clients.enrol()
    mesh.faults.refuse_uploads = [Unavailable("down", retry_after_ms=60_000)]
    async with MeshClient.open(path, owner=ANY_MODE) as client:
        task = join_in(client, toward(1.0))
        round = await mesh.start_round(1, change=noisy(2.0))
        await mesh.wait(lambda: "submit" in mesh.calls)
        assert not round.updates
        (charged,) = client.ledger.events()
        assert (charged.mechanism, charged.noise_multiplier) == ("discrete-gaussian", 2.0)
    await task
    mesh.faults.refuse_uploads = []
    again = await clients.open(path)
    task = join_in(again, toward(-1.0))
    await mesh.finish_round()
    assert round.updates
    assert again.ledger.events() == (charged,)
    await again.stop()
    await task


async def test_an_attempt_is_answered_once_whatever_the_mesh_shows(
    mesh: MiniMesh, clients: Clients
) -> None:
    """A mesh that offers an attempt again, to a client that forgot it, gets no second update."""
    path = await clients.enrol()
    client = await clients.open(path)
    heard = Heard()
    task = join_in(client, toward(1.0), rounds=1, notify=heard)
    first = await mesh.start_round(1, change=noisy(2.0))
    await mesh.finish_round()
    await task
    await client.close()
    again = await clients.open(path)
    heard = Heard()
    task = join_in(again, toward(-1.0), notify=heard)

    def same_attempt(configuration: m.RoundConfiguration) -> m.RoundConfiguration:
        return replace(noisy(2.0)(configuration), round_id=first.configuration.round_id)

    await mesh.start_round(1, change=same_attempt)
    error = (await heard.until(NoticeKind.DECLINED)).error
    assert isinstance(error, RoundRefused)
    assert "charged to this client already" in error.message
    assert len(again.ledger.events()) == 1
    await again.stop()
    await task


async def test_what_was_sealed_without_a_charge_is_not_sent(
    mesh: MiniMesh, clients: Clients
) -> None:
    """As if the process had died between the two."""
    path = await clients.enrol()
    mesh.faults.refuse_uploads = [Unavailable("down", retry_after_ms=60_000)]
    async with MeshClient.open(path, owner=ANY_MODE) as client:
        task = join_in(client, toward(1.0))
        round = await mesh.start_round(1)
        await mesh.wait(lambda: "submit" in mesh.calls)
        (sealed,) = await asyncio.to_thread(client.spool.find_all)
    await task
    Ledger(path).path.unlink()
    mesh.calls.clear()
    again = await clients.open(path)
    with pytest.raises(RoundRefused, match="never charged"):
        await again.upload(sealed, round.configuration.deadline_ms)
    task = join_in(again, toward(1.0))
    await mesh.wait(lambda: not sealed.path.exists())
    assert "submit" not in mesh.calls
    assert not round.updates
    await again.stop()
    await task


async def test_a_damaged_ledger_declines(mesh: MiniMesh, clients: Clients) -> None:
    client = await clients.open()
    client.ledger.path.touch(0o600)
    client.ledger.path.write_bytes(b"nonsense\n")
    heard = Heard()
    task = join_in(client, toward(1.0), rounds=1, notify=heard)
    await mesh.start_round(1)
    error = (await heard.until(NoticeKind.DECLINED)).error
    assert error is not None
    assert "damaged" in error.message
    assert ((await task).declined, (await task).refused) == (1, 0)
    assert "submit" not in mesh.calls
