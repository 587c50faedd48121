"""A partner who has the page and the stubs takes part in a round."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator

import grpc
import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from boltz_protocol.v1 import aggregator_pb2 as agg
from boltz_protocol.v1 import common_pb2 as common
from boltz_protocol.v1 import model_store_pb2 as store
from boltz_protocol.v1 import registry_pb2 as reg
from tests.integration.docs import partner as p
from tests.support.mesh import Mesh, Stubs
from tests.support.models import declare

BASE = [1.0, -2.0, 0.5, 0.25, 3.0, -1.0, 0.0, 8.0]
DELTA = [0.1, -0.2, 0.3, 0.05, -0.1, 0.2, 0.15, -0.05]


def pem(*ders: bytes) -> bytes:
    found = (x509.load_der_x509_certificate(der) for der in ders)
    return b"".join(c.public_bytes(serialization.Encoding.PEM) for c in found)


async def requests(
    queue: asyncio.Queue[agg.ParticipateRequest],
) -> AsyncIterator[agg.ParticipateRequest]:
    while True:
        yield await queue.get()


async def pulled(stubs: Stubs, model: str, version: int) -> tuple[store.ModelVersion, bytes]:
    async def asked() -> AsyncIterator[store.PullRequest]:
        yield store.PullRequest(open=store.PullOpen(model_id=model, version=version, credits=8))

    found, content = store.ModelVersion(), b""
    async for answer in stubs.models.Pull(asked()):
        if answer.WhichOneof("message") == "header":
            found = answer.header.version
        else:
            content += answer.chunk.data
    return found, content


async def test_a_client_made_from_the_page_takes_part(mesh: Mesh, model: str) -> None:
    await declare(mesh, model, np.array(BASE, np.float32), min=1, target=1, max=1)
    token = await mesh.operator.registry.CreateEnrollmentToken(reg.CreateEnrollmentTokenRequest())

    # Enrol, with the root found by its fingerprint.
    join = p.read_join(token.join_string)
    assert (join.enroll_address, join.mesh_address) == (
        mesh.addresses.enroll,
        mesh.addresses.mesh,
    )
    root = await asyncio.to_thread(p.fetch_root, join)
    root_pem = root.public_bytes(serialization.Encoding.PEM)
    key = await asyncio.to_thread(rsa.generate_private_key, 65537, 3072)
    async with grpc.aio.secure_channel(
        join.enroll_address, grpc.ssl_channel_credentials(root_pem)
    ) as channel:
        enrolled = await Stubs(channel).registry.Enroll(
            reg.EnrollRequest(
                token=join.token,
                csr_der=p.certificate_request(key),
                request_key=secrets.token_bytes(32),
                protocol=common.ProtocolRange(min=1, max=1),
            )
        )
    key_pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    credentials = grpc.ssl_channel_credentials(
        root_pem, key_pem, pem(*enrolled.certificate_chain_der)
    )
    async with (
        asyncio.timeout(30),
        grpc.aio.secure_channel(join.mesh_address, credentials) as channel,
    ):
        await take_part(mesh, Stubs(channel), model, key=key, root=root, enrolled=enrolled)


async def take_part(
    mesh: Mesh,
    stubs: Stubs,
    model: str,
    *,
    key: rsa.RSAPrivateKey,
    root: x509.Certificate,
    enrolled: reg.EnrollResponse,
) -> None:
    keys = p.statement_keys(await stubs.registry.GetServerKeys(reg.GetServerKeysRequest()), root)

    # Check in and wait for an offer.
    spoken = agg.CheckIn(
        mesh_id=enrolled.mesh_id,
        client_id=enrolled.client_id,
        session_id=secrets.token_hex(16),
        model_id=model,
        sample_bucket=8,
        quality_bucket=3,
        protocol=common.ProtocolRange(min=1, max=1),
        suites=[common.SUITE_V1],
        at_ms=time.time_ns() // 1_000_000,
    )
    queue: asyncio.Queue[agg.ParticipateRequest] = asyncio.Queue()
    queue.put_nowait(agg.ParticipateRequest(check_in=p.sign(key, spoken)))
    control = stubs.aggregator.Participate(requests(queue))
    answers = aiter(control)
    assert (await anext(answers)).welcome.protocol_version == 1
    started = await mesh.operator.aggregator.StartRound(agg.StartRoundRequest(model_id=model))
    offer = (await anext(answers)).offer

    # Check the offer.
    terms = p.verified(keys, offer.configuration, agg.RoundConfiguration)
    assert (terms.mesh_id, terms.model_id, terms.round_id, terms.mode) == (
        enrolled.mesh_id,
        model,
        started.round.round_id,
        common.ROUND_MODE_OPEN,
    )
    entry = p.check_roster(offer, terms)
    assert entry.check_in.payload == spoken.SerializeToString()
    recipient = p.verified(keys, terms.encryption_key, reg.EncryptionKey)
    assert recipient.not_after_ms >= terms.deadline_ms
    p.check_bound(terms)

    # Pull, "train", seal, upload.
    version, content = await pulled(stubs, model, terms.base_version)
    manifest = p.verified(keys, version.manifest, store.ModelManifest)
    assert manifest.sha256 == terms.model_sha256
    assert p.read_model(manifest, content) == BASE
    digest = p.sha256(p.signed_bytes(offer.configuration))
    plain = p.encode(DELTA, entry.weight, terms)
    update, chunks = p.seal(
        plain, entry=entry, terms=terms, digest=digest, recipient=recipient, at_ms=spoken.at_ms
    )

    async def upload() -> AsyncIterator[agg.SubmitUpdateRequest]:
        yield agg.SubmitUpdateRequest(manifest=p.sign(key, update))
        for chunk in chunks:
            yield agg.SubmitUpdateRequest(chunk=chunk)

    replies = [reply async for reply in stubs.aggregator.SubmitUpdate(upload())]
    assert replies[0].progress.committed_bytes == 0
    receipt = p.verified(keys, replies[-1].receipt, agg.UpdateReceipt)
    assert (receipt.round_id, receipt.attempt, receipt.client_id, receipt.sha256) == (
        update.round_id,
        update.attempt,
        update.client_id,
        update.sha256,
    )

    # The round ends with a version that is one's own delta further on.
    outcome = (await anext(answers)).outcome
    assert (outcome.phase, outcome.counted) == (agg.PHASE_PUBLISHED, True)
    control.cancel()
    made, content = await pulled(mesh.operator, model, outcome.new_version)
    found = p.read_model(p.verified(keys, made.manifest, store.ModelManifest), content)
    wanted = [base + delta for base, delta in zip(BASE, DELTA, strict=True)]
    assert found == pytest.approx(wanted, abs=2 / terms.scale + 1e-6)
