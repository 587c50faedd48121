"""Pulling a model: as many calls as it takes, then every check."""

from __future__ import annotations

import asyncio
from pathlib import Path

from opentelemetry.trace import SpanKind
from tenacity import AsyncRetrying, retry_if_exception

from boltz_client.backoff import Backoff, StopWithoutProgress
from boltz_client.connection import is_passing
from boltz_client.link import MeshLink
from boltz_client.models import PulledModel
from boltz_client.spool import ModelSink, remove_other_models
from boltz_client.tracing import call_metadata, tracer
from boltz_client.transfer import Pull
from boltz_protocol import codec, limits
from boltz_protocol import messages as m
from boltz_protocol.errors import MalformedMessage, UnknownKey
from boltz_protocol.ids import ModelId
from boltz_protocol.statement import Statement


class Puller:
    """Fetches models for one client.

    Args:
        link: the client's connection.
        folder: where large models are spooled.
        mesh_id: whose models they must be.
    """

    def __init__(self, link: MeshLink, folder: Path, mesh_id: str) -> None:
        self._link = link
        self._folder = folder
        self._mesh_id = mesh_id
        self._lock = asyncio.Lock()

    async def pull(self, model_id: ModelId, version: int) -> PulledModel:
        """As `MeshClient.pull_model`; the folder must exist."""
        await self._link.learn_keys()
        pull = Pull(model_id, version, self._model_manifest, self._place)
        # One at a time: two pulls of one version would write to one file.
        async with self._lock:
            return await self._pulled(pull)

    async def _pulled(self, pull: Pull) -> PulledModel:
        with tracer().start_as_current_span("boltz.client.pull", kind=SpanKind.CLIENT) as span:
            try:
                async for attempt in AsyncRetrying(
                    retry=retry_if_exception(is_passing),
                    wait=Backoff(),
                    stop=StopWithoutProgress(lambda: pull.sink.offset if pull.sink else 0),
                    reraise=True,
                ):
                    with attempt:
                        await self._pull_once(pull)
            finally:
                pull.close()
            assert pull.header is not None
            assert pull.sink is not None
            manifest = pull.header.manifest
            span.set_attribute("boltz.bytes", manifest.size_bytes)
            path = self._place(manifest)
            if path is None:
                content = pull.sink.finish(manifest.sha256)
                return PulledModel.from_bytes(pull.header.statement, manifest, content)
            return await asyncio.to_thread(
                _finish_file, pull.sink, pull.header.statement, manifest, path
            )

    async def _pull_once(self, pull: Pull) -> None:
        try:
            await pull.run(self._link.stubs.pull, call_metadata())
        except UnknownKey:
            # The mesh has changed its statement key since this client last looked.
            await self._link.learn_keys(fresh=True)
            await pull.run(self._link.stubs.pull, call_metadata())

    def _model_manifest(self, statement: Statement) -> m.ModelManifest:
        payload = self._link.keys.verify(statement, m.MODEL_MANIFEST, self._link.server_time_ms())
        manifest = codec.parse_model_manifest(payload)
        if manifest.mesh_id != self._mesh_id:
            raise MalformedMessage(f"a model of the mesh {manifest.mesh_id!r}", field="mesh_id")
        return manifest

    def _place(self, manifest: m.ModelManifest) -> Path | None:
        if manifest.size_bytes <= limits.MAX_UNSPOOLED_MODEL_BYTES:
            return None
        name = f"{manifest.model_id}_{manifest.version}_{manifest.sha256.hex()[:32]}.safetensors"
        return self._folder / name


def _finish_file(
    sink: ModelSink, statement: Statement, manifest: m.ModelManifest, path: Path
) -> PulledModel:
    sink.finish(manifest.sha256)
    remove_other_models(path.parent, manifest.model_id, [path])
    return PulledModel.from_file(statement, manifest, path)
