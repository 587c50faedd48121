"""Rounds without a database: configurations, sealed updates in a blob folder."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from boltz_mesh.aggregation.calibration import calibrate
from boltz_mesh.aggregation.weighted_mean import WEIGHTED_MEAN
from boltz_mesh.coordinator.fold import Summing
from boltz_mesh.coordinator.stored import StoredUpdate
from boltz_mesh.storage.blobs import BlobStore
from boltz_protocol import limits
from boltz_protocol import messages as m
from boltz_protocol.encoding import plan_encoding
from boltz_protocol.envelope import ContentKey, Opener, Sealer
from boltz_protocol.ids import (
    ModelId,
    RoundId,
    new_client_id,
    new_key_id,
    new_session_id,
)
from boltz_protocol.packing import pack24
from boltz_protocol.sealing import update_context, update_layout
from boltz_protocol.statement import RSA_PSS_SHA256, Statement

Int32Array = npt.NDArray[np.int32]
DIGEST = bytes(32)
ROUND = RoundId("ab" * 16)


def configuration(parameters: int, *, clients: int = 3, **changes: Any) -> m.RoundConfiguration:
    """A consistent configuration: weights of 100 each, no noise."""
    lanes = changes.get("lanes", ())
    noise = changes.get("noise_multiplier", 0.0)
    encoding = plan_encoding(
        clip_norm_l2=1.0,
        noise_multiplier=noise,
        cohort_max=clients,
        coordinates=parameters + len(lanes),
    )
    values: dict[str, Any] = {
        "mesh_id": "demo",
        "round_id": ROUND,
        "attempt": 1,
        "model_id": ModelId("model"),
        "mode": m.RoundMode.OPEN,
        "base_version": 1,
        "model_sha256": DIGEST,
        "parameters": parameters,
        "lanes": (),
        "clip_norm": 1.0,
        "scale": math.ldexp(1.0, encoding.scale_log2),
        "bound_l2": encoding.bound_l2,
        "noise_multiplier": 0.0,
        "privacy": "client-dp" if noise else "none",
        "epsilon_budget": 8.0 if noise else 0.0,
        "delta": 1e-6 if noise else 0.0,
        "roster_root": DIGEST,
        "roster_size": clients,
        "total_weight": 100 * clients,
        "max_weight": 100,
        "min_survivors": 1,
        "deadline_ms": 2_000,
        "encryption_key": Statement("t", b"", new_key_id(), RSA_PSS_SHA256, b"s"),
        "hyperparameters": {},
        "plan_revision": 1,
        "optimizer_state_sha256": b"",
        "created_at_ms": 1_000,
    }
    return m.RoundConfiguration(**(values | changes))


def mean_of(config: m.RoundConfiguration) -> Summing:
    """The weighted mean and its noise."""
    calibration = calibrate(
        WEIGHTED_MEAN,
        noise_multiplier=config.noise_multiplier,
        clip=config.bound_l2,
        weights=(limits.MAX_WEIGHT,) * config.roster_size,
    )
    return Summing(WEIGHTED_MEAN, calibration)


def random_updates(config: m.RoundConfiguration, count: int, seed: int) -> list[Int32Array]:
    """Integer updates within the bound."""
    random = np.random.default_rng(seed)
    scale = config.bound_l2 / math.sqrt(config.coordinates) / 2
    return [
        np.rint(random.uniform(-scale, scale, config.coordinates)).astype(np.int32)
        for _ in range(count)
    ]


def stored(
    blobs: BlobStore, config: m.RoundConfiguration, values: Int32Array, *, weight: int = 100
) -> StoredUpdate:
    """Encrypt and store one update."""
    layout = update_layout(config)
    content_key = ContentKey.generate()
    client_id = new_client_id()
    context = update_context(
        config,
        DIGEST,
        client_id=client_id,
        session_id=new_session_id(),
        recipient_key_id=new_key_id(),
    )
    sealer = Sealer(content_key, context, layout)
    buffer = bytearray(limits.CHUNK_CIPHER_BYTES)
    with blobs.writer() as writer:
        for index in range(layout.count):
            start = index * limits.CHUNK_PARAMETERS
            chunk = pack24(values[start : start + limits.CHUNK_PARAMETERS])
            size = sealer.seal_into(index, chunk, buffer)
            writer.write(memoryview(buffer)[:size])
        ref = writer.commit()
    opener = Opener(content_key, context, layout, sealer.commitment)
    return StoredUpdate(client_id, ref.digest, opener, weight)
