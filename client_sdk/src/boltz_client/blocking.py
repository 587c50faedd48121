"""The same API without `async`, for scripts and notebooks.

::

    from boltz_client import blocking

    blocking.enroll(join_string, "store")
    with blocking.MeshClient.open("store") as client:
        client.participate(trainer, "volatility", rounds=3)

Each client runs an event loop in a thread of its own; for many clients in one process use the
async API, where they share one loop.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, Future
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from boltz_client import client as _async
from boltz_client import enrolment
from boltz_client.charges import Budget
from boltz_client.enrolment import Enrolled, Profile
from boltz_client.models import PulledModel
from boltz_client.notices import Notice, Summary
from boltz_client.offers import AcceptedRound
from boltz_client.owner import OwnerLimits
from boltz_client.trainer import Trainer, TrainResult
from boltz_protocol import limits
from boltz_protocol.messages import UpdateReceipt

_T = TypeVar("_T")


def enroll(
    join_string: str,
    keystore_path: Path | str,
    *,
    region: str = "",
    profile: Profile | None = None,
    wait: bool = False,
) -> Enrolled:
    """As `boltz_client.enroll`."""
    return asyncio.run(
        enrolment.enroll(join_string, keystore_path, region=region, profile=profile, wait=wait)
    )


class _LoopThread:
    """An event loop in a thread."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="boltz-client", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    def start(self, work: Coroutine[Any, Any, _T]) -> Future[_T]:
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def call(self, work: Coroutine[Any, Any, _T]) -> _T:
        future = self.start(work)
        try:
            return future.result()
        except BaseException:
            # A KeyboardInterrupt, for one: leave nothing running behind the caller's back.
            future.cancel()
            raise

    def close(self) -> None:
        self.call(self.loop.shutdown_default_executor())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


class MeshClient:
    """As `boltz_client.MeshClient`. Make it with `open`; any thread may call its methods."""

    def __init__(self, runner: _LoopThread, stack: AsyncExitStack, inner: _async.MeshClient):
        self._runner = runner
        self._stack = stack
        self._inner = inner

    @classmethod
    def open(
        cls, folder: Path | str, *, owner: OwnerLimits | None = None, region: str = ""
    ) -> MeshClient:
        """As `boltz_client.MeshClient.open`; use it in `with`, or call `close`."""
        runner = _LoopThread()
        stack = AsyncExitStack()
        try:
            inner = runner.call(
                stack.enter_async_context(
                    _async.MeshClient.open(folder, owner=owner, region=region)
                )
            )
        except BaseException:
            runner.close()
            raise
        return cls(runner, stack, inner)

    def __enter__(self) -> MeshClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop taking part and close everything."""
        self._runner.call(self._stack.aclose())
        self._runner.close()

    @property
    def inner(self) -> _async.MeshClient:
        """The async client underneath."""
        return self._inner

    @property
    def client_id(self) -> str:
        """This client's id."""
        return self._inner.client_id

    def pull_model(self, model_id: str, version: int = 0) -> PulledModel:
        """As `boltz_client.MeshClient.pull_model`."""
        return self._runner.call(self._inner.pull_model(model_id, version))

    def submit_update(
        self, accepted: AcceptedRound, base: PulledModel, result: TrainResult
    ) -> UpdateReceipt:
        """As `boltz_client.MeshClient.submit_update`."""
        return self._runner.call(self._inner.submit_update(accepted, base, result))

    def participate(
        self,
        trainer: Trainer,
        model_id: str,
        *,
        rounds: int | None = None,
        quality_bucket: int = limits.MAX_QUALITY_BUCKET,
        notify: Callable[[Notice], None] | None = None,
    ) -> Summary:
        """As `boltz_client.MeshClient.participate`; `notify` is called in the loop's thread.

        A KeyboardInterrupt ends it in order and is raised again.
        """
        future = self._runner.start(
            self._inner.participate(
                trainer, model_id, rounds=rounds, quality_bucket=quality_bucket, notify=notify
            )
        )
        try:
            return future.result()
        except (KeyboardInterrupt, CancelledError):
            self.stop()
            raise

    def stop(self) -> None:
        """End every `participate` of this client, from another thread."""
        self._runner.call(self._inner.stop())

    def privacy_budget(self, model_id: str) -> Budget:
        """As `boltz_client.MeshClient.privacy_budget`."""
        return self._runner.call(self._inner.privacy_budget(model_id))

    def status(self) -> str:
        """As `boltz_client.MeshClient.status`."""
        return self._runner.call(self._inner.status())
