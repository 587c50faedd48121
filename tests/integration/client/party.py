"""Clients of the library at a real mesh, each behind a network of its own that can be cut."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from boltz_client import (
    MeshClient,
    NoticeKind,
    RoundContext,
    TrainResult,
    enroll,
)
from boltz_client.adapters.numpy import FunctionTrainer
from boltz_client.notices import Summary
from boltz_protocol.ids import ModelId
from boltz_protocol.join import parse_join_string
from boltz_protocol.model_file import Vector
from tests.integration.client.heard import Heard
from tests.integration.services.playing import live
from tests.support.clients import join_token, start_round
from tests.support.mesh import Mesh
from tests.support.models import declare
from tests.support.proxy import Proxy, forwarding

SIZE = 8
ADVERTISE = "advertise"
#: For rounds that have to wait for clients that are gone.
SHORT = {"advertising": "2s", "sharing": "2s", "collecting": "2s", "checking": "3s"}
Action = Callable[[], Awaitable[None]]


@dataclass
class Member:
    """One client behind a network of its own.

    Attributes:
        value: every coordinate of its delta.
        actions: step -> what happens once, right after it was taken and before it is answered.
    """

    client: MeshClient
    proxy: Proxy
    samples: int
    value: float
    heard: Heard = field(default_factory=Heard)
    actions: dict[str, Action] = field(default_factory=dict)
    train: Callable[[RoundContext], None] = lambda round: None
    task: asyncio.Task[Summary] | None = None

    def join(self, model: str, **arguments: Any) -> asyncio.Task[Summary]:
        def train(tensors: dict[str, Vector], round: RoundContext) -> TrainResult:
            self.train(round)
            return TrainResult(delta={"weights": np.full(SIZE, self.value, np.float32)})

        trainer = FunctionTrainer(train, self.samples)
        self.task = asyncio.create_task(
            self.client.participate(trainer, model, notify=self.heard, **arguments)
        )
        return self.task

    def cut_at(self, step: str) -> None:
        async def cut() -> None:
            self.proxy.cut()

        self.actions[step] = cut

    def die_at(self, step: str) -> None:
        async def die() -> None:
            self.proxy.kill()

        self.actions[step] = die


@dataclass
class Party:
    """A real mesh and its members."""

    mesh: Mesh
    folder: Path
    stack: AsyncExitStack
    members: list[Member] = field(default_factory=list)

    async def add(self, count: int, **arguments: Any) -> list[Member]:
        for _ in range(count):
            number = len(self.members)
            join = await join_token(self.mesh)
            proxy = await self.stack.enter_async_context(forwarding(self.mesh.addresses.mesh))
            text = replace(parse_join_string(join.join_string), mesh_address=proxy.address)
            path = self.folder / f"client{number}"
            await enroll(text.encode(), path)
            client = await self.stack.enter_async_context(MeshClient.open(path, **arguments))
            member = Member(client, proxy, samples=3 << number, value=0.02 * (number + 1))
            self.members.append(member)
        return self.members

    async def start(self, model: str, **arguments: Any) -> str:
        """Everybody joins, and the round begins."""
        for member in self.members:
            member.join(model, **({"rounds": 1} | arguments))
        for member in self.members:
            await member.heard.until(NoticeKind.CHECKED_IN)
        return (await start_round(self.mesh, model)).round_id

    async def weighted_mean(self, round_id: str, members: list[Member]) -> float:
        rows = await self.mesh.fetch(
            "SELECT client_id, weight FROM round_roster WHERE round_id = $1", round_id
        )
        weights = {row["client_id"]: int(row["weight"]) for row in rows}
        total = sum(weights[member.client.client_id] for member in members)
        return sum(one.value * weights[one.client.client_id] for one in members) / total

    async def conduct(self, round_id: str) -> list[str]:
        """What each member did in a round that has ended, as its trust was told."""
        rows = await self.mesh.fetch(
            "SELECT client_id, reason FROM trust_evidence WHERE round_id = $1 AND kind = 'conduct'",
            round_id,
        )
        reasons = {row["client_id"]: str(row["reason"]) for row in rows}
        return [reasons[member.client.client_id] for member in self.members]

    async def check_model(self, model: str, round_id: str, members: list[Member]) -> None:
        """The published model is the plain weighted mean of these members, within rounding."""
        mean = await self.weighted_mean(round_id, members)
        np.testing.assert_allclose(await live(self.mesh, model), np.full(SIZE, mean), atol=1e-5)


async def declare_sealed(party: Party, model: str, **plan: Any) -> ModelId:
    count = len(party.members)
    settings: dict[str, Any] = {"mode": "sealed", "min": 3, "target": count, "max": count}
    return await declare(party.mesh, model, **(settings | plan))


def secrets_left(party: Party) -> list[MeshClient]:
    """Clients with a round that still holds its secrets."""
    return [
        member.client
        for member in party.members
        for participation in member.client._participations
        for round in participation._rounds.values()
        if round.part is not None and round.part._secagg is not None
    ]
