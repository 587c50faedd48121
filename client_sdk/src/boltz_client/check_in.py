"""Saying "I am here, with this much data"."""

from __future__ import annotations

import asyncio

from boltz_client.notices import Host
from boltz_protocol import codec
from boltz_protocol import messages as m
from boltz_protocol.ids import ModelId
from boltz_protocol.statement import Statement, sign_rsa_pss


async def signed_check_in(
    host: Host, model_id: ModelId, sample_bucket: int, quality_bucket: int
) -> tuple[m.CheckIn, Statement]:
    """A check-in of this moment, and the statement that carries it (signed in a thread)."""
    check_in = m.CheckIn(
        mesh_id=host.mesh_id,
        client_id=host.client_id,
        session_id=host.session_id,
        model_id=model_id,
        sample_bucket=sample_bucket,
        quality_bucket=quality_bucket,
        region=host.region,
        at_ms=host.server_time_ms(),
    )
    statement = await asyncio.to_thread(
        sign_rsa_pss,
        type=m.CHECK_IN,
        payload=codec.encode_check_in(check_in),
        private_key=host.store.private_key,
    )
    return check_in, statement
