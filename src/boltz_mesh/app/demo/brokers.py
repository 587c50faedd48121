"""One broker of the demo, a process of its own: `python -m boltz_mesh.app.demo.brokers`.

It gets its own stock's closes and the public index, nothing else, and holds its desks: each one
is a client of the mesh with a key store and a connection of its own. What to do comes line by line
(`messages`). Twenty of these start on one machine, so nothing heavy is imported here.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

from boltz_client import (
    KeyStore,
    MeshClient,
    Notice,
    NoticeKind,
    OwnerLimits,
    PeerMemory,
    RoundContext,
    TrainResult,
    enroll,
)
from boltz_client.keystore import generate_client_key
from boltz_mesh.app.demo.data import load_saved
from boltz_mesh.app.demo.desks import Broker, Desk, broker_of, desk_of, join
from boltz_mesh.app.demo.linear import Float32Array
from boltz_mesh.app.demo.messages import (
    MAX_LINE_BYTES,
    Declined,
    Enrol,
    Enrolled,
    Failed,
    Join,
    Joined,
    Left,
    Measure,
    Measured,
    News,
    Order,
    Setup,
    line_of,
    parse_order,
)
from boltz_mesh.app.demo.settings import Preset, TrainerKind
from boltz_mesh.app.demo.wire import WireMeter
from boltz_protocol.errors import MeshError
from boltz_protocol.join import JoinString, parse_join_string

_log: Final = logging.getLogger(__name__)
#: File in the broker's folder with its prices.
PRICES: Final = "prices.npz"


@dataclass(frozen=True, slots=True)
class DeskTrainer:
    """One desk's trainer: one instance serves every model, since a plan names its origin.

    Attributes:
        desk: 0 is the newest.
        made: desks by origin and ridge, made when first asked for. The rounds of two models may
            make one twice at a time, which is harmless.
    """

    broker: Broker
    desk: int
    preset: Preset
    trainer: TrainerKind
    made: dict[tuple[int, float], Desk] = field(default_factory=dict)

    def sample_count(self) -> int:
        """Rows of the desk, the same at every origin."""
        return self.preset.layout.kept_rows

    def train(self, model: dict[str, Float32Array], round: RoundContext) -> TrainResult:
        """The desk's delta from the round's base model; the library clips it."""
        origin = int(round.number("origin", 0))
        desk = self._at(origin, round.number("ridge", self.preset.ridge))
        return TrainResult(delta=desk.delta(join(model, self.broker.kind)))

    def _at(self, origin: int, ridge: float) -> Desk:
        key = (origin, ridge)
        if key not in self.made:
            preset = replace(self.preset, ridge=ridge)
            self.made[key] = desk_of(self.broker, origin, self.desk, preset, self.trainer)
        return self.made[key]


@dataclass(frozen=True, slots=True)
class _Client:
    """A desk with its connection."""

    client: MeshClient
    trainer: DeskTrainer


@dataclass(frozen=True, slots=True, repr=False)
class _Own:
    """What a broker has before it knows a mesh."""

    setup: Setup
    broker: Broker
    keys: tuple[RSAPrivateKey, ...]


class BrokerProcess:
    """The broker's side of the conversation.

    Args:
        tell: sends news; called on the event loop.
    """

    def __init__(self, tell: Callable[[News], None]) -> None:
        self._tell = tell
        self._desks: list[_Client] = []

    async def run(self, orders: asyncio.StreamReader) -> None:
        """Obey until the orders end. Raises: MeshError, where going on makes no sense."""
        setup = await _next(orders)
        if setup is None:
            return
        assert isinstance(setup, Setup), "the first order says who the broker is"
        own = await asyncio.to_thread(_prepare, setup)
        meter: WireMeter | None = None
        async with AsyncExitStack() as stack:
            try:
                async with asyncio.TaskGroup() as tasks:
                    while (order := await _next(orders)) is not None:
                        match order:
                            case Enrol(join_strings=joins):
                                meter = await self._enrol(own, joins, stack)
                                self._tell(Enrolled())
                            case Join():
                                tasks.create_task(self._take_part(order))
                            case Measure(number=number):
                                assert meter is not None, "only an enrolled broker is measured"
                                sent, received = meter.read()
                                self._tell(Measured(number=number, sent=sent, received=received))
                            case Setup():
                                raise AssertionError("a broker is set up once")
                    # The demo is over, or gone: no round of ours can still count.
                    raise _Over
            except* _Over:
                pass

    async def _enrol(self, own: _Own, joins: tuple[str, ...], stack: AsyncExitStack) -> WireMeter:
        assert len(joins) == len(own.keys), "a join string for each desk"
        folder = Path(own.setup.folder)

        # One after another: with twenty brokers that do so, the mesh has enough to sign.
        for desk, text in enumerate(joins):
            # The key was made while the mesh started; `enroll` finds it in its store.
            store = _store(folder, desk)
            await asyncio.to_thread(_keep_key, store, parse_join_string(text), own.keys[desk])
            await enroll(text, store)
        port, owner, memory = 0, owner_limits(own.setup), PeerMemory()
        for desk in range(len(joins)):
            client = await stack.enter_async_context(
                MeshClient.open(_store(folder, desk), owner=owner, memory=memory)
            )
            trainer = DeskTrainer(own.broker, desk, own.setup.preset, own.setup.trainer)
            self._desks.append(_Client(client, trainer))
            port = int(client.store.identity.mesh_address.rpartition(":")[2])
        return WireMeter(port)

    async def _take_part(self, order: Join) -> None:
        """Every desk takes part in the model's rounds; the news say when it begins and ends."""
        waiting = set(range(len(self._desks)))

        def notify(desk: int, notice: Notice) -> None:
            match notice.kind:
                case NoticeKind.CHECKED_IN if desk in waiting:
                    waiting.discard(desk)
                    if not waiting:
                        self._tell(Joined(model_id=order.model_id))
                case (
                    NoticeKind.DECLINED | NoticeKind.IGNORED | NoticeKind.WITHHELD | NoticeKind.LATE
                ):
                    why = notice.error.message if notice.error is not None else notice.kind.value
                    self._tell(Declined(model_id=order.model_id, desk=desk, why=why))
                case NoticeKind.DISCONNECTED:
                    _log.info("desk %d, %s: %s", desk, order.model_id, notice.error)

        def told_of(desk: int) -> Callable[[Notice], None]:
            return lambda notice: notify(desk, notice)

        async with asyncio.TaskGroup() as tasks:
            parts = [
                tasks.create_task(
                    desk.client.participate(
                        desk.trainer, order.model_id, rounds=order.rounds, notify=told_of(number)
                    )
                )
                for number, desk in enumerate(self._desks)
            ]
        counted = sum(part.result().counted for part in parts)
        self._tell(Left(model_id=order.model_id, counted=counted))


class _Over(Exception):
    """The orders have ended."""


def owner_limits(setup: Setup) -> OwnerLimits:
    """What a broker allows the mesh to ask of its desks, whatever the mesh's plans say.

    Sealed rounds only, as by default. A broker of a real mesh would also set `epsilon_budget` and
    `least_noise_multiplier`; here they would refuse the rounds without noise, which are there to
    show what noise costs.
    """
    return OwnerLimits(
        models=("vol-*",),
        smallest_cohort=setup.smallest_cohort,
        # All desks have as many rows. A desk with more than twice its part of the sum would be
        # hidden less well than it believes.
        largest_weight_share=min(1.0, 2 / setup.smallest_cohort),
        largest_clip_norm=setup.preset.clip_norm_l2,
        largest_attempt=1,
    )


def _prepare(setup: Setup) -> _Own:
    """The broker's series, and a key for each desk."""
    broker = broker_of(load_saved(Path(setup.folder) / PRICES), setup.kind)
    if setup.trainer == "torch" and setup.kind == "mlp":
        # Once and now: the first round must not wait for a second of importing.
        from boltz_mesh.app.demo import mlp_torch  # noqa: F401, PLC0415
    keys = tuple(generate_client_key() for _ in range(setup.preset.layout.per_broker))
    return _Own(setup, broker, keys)


def _store(folder: Path, desk: int) -> Path:
    return folder / f"desk-{desk + 1}"


def _keep_key(folder: Path, join_string: JoinString, key: RSAPrivateKey) -> None:
    KeyStore.create(folder, join_string, key).close()


async def _next(orders: asyncio.StreamReader) -> Order | None:
    """The next order; None at the end."""
    line = await orders.readline()
    return parse_order(line) if line.endswith(b"\n") else None


def _first(group: BaseExceptionGroup[MeshError]) -> MeshError:
    """The first error inside of groups of groups."""
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first


async def _main() -> int:
    loop = asyncio.get_running_loop()
    orders = asyncio.StreamReader(limit=MAX_LINE_BYTES)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)

    def tell(news: News) -> None:
        # A line is far below a pipe's buffer, and the demo reads all the time.
        with open(1, "wb", closefd=False, buffering=0) as output:
            output.write(line_of(news))

    failed: MeshError | None = None
    try:
        await BrokerProcess(tell).run(orders)
    except* MeshError as group:
        failed = _first(group)
        _log.error("%s %s", failed.message, failed.advice(), exc_info=group)
        tell(Failed(why=failed.message))
    return 0 if failed is None else 1


def main() -> int:
    """Run one broker until its orders end."""
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.INFO)
    return asyncio.run(_main())


if __name__ == "__main__":
    sys.exit(main())
