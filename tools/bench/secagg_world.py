"""What `secagg` measures with: certified clients, a configuration, stop-watches."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

from boltz_client.keystore import certificate_request
from boltz_client.peer_checks import PeerChecks
from boltz_mesh.services.identity.authority import Authority, new_root
from boltz_protocol import codec, ids, limits, weights
from boltz_protocol import messages as m
from boltz_protocol.encoding import plan_encoding
from boltz_protocol.keys import generate_rsa_key, public_key_der, public_key_id
from boltz_protocol.keystream import KEY_BYTES, Keystream
from boltz_protocol.noise import DiscreteGaussian, discrete_gaussian
from boltz_protocol.noise_share import share_variance
from boltz_protocol.secagg.graph import colluders
from boltz_protocol.statement import Statement, digest, sign_ed25519, sign_rsa_pss

MESH: Final = "bench"
NOW: Final = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
NOW_MS: Final = int(NOW.timestamp() * 1000)
#: Threads of the server's bulk work.
THREADS: Final = 2
CORRUPT_FRACTION: Final = 0.05
LEAST_DROPOUT_FRACTION: Final = 0.05
NOISE_MULTIPLIER: Final = 1.0
#: Distinct client keys: making one takes longer than all the rest, and costs depend on none.
KEYS: Final = 4

Int32Array = npt.NDArray[np.int32]


class Watch:
    """Adds up time by step; steps may nest, and then time counts for the inner one only."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._inner = [0.0]
        self.cpu: defaultdict[str, float] = defaultdict(float)
        self.wall: defaultdict[str, float] = defaultdict(float)

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Count what happens inside."""
        self._inner.append(0.0)
        cpu, wall = self._clock(), time.perf_counter()
        yield
        spent = self._clock() - cpu
        self.cpu[name] += spent - self._inner.pop()
        self._inner[-1] += spent
        self.wall[name] += time.perf_counter() - wall


@dataclass
class Peer:
    """One client of the benchmark, its machine and what it sent."""

    entry: m.RosterEntry
    key: RSAPrivateKey
    checks: PeerChecks
    watch: Watch = field(default_factory=lambda: Watch(time.thread_time))
    bytes_up: int = 0
    noise_keys: list[bytes] = field(default_factory=list)

    def noise_stream(self) -> Keystream:
        """A fresh stream whose key is kept for the check of the sum."""
        self.noise_keys.append(os.urandom(KEY_BYTES))
        return Keystream(self.noise_keys[-1])


class TimedNoise:
    """The sampler of a noise share, on a client's watch."""

    def __init__(self, sampler: DiscreteGaussian, watch: Watch) -> None:
        self._sampler, self._watch = sampler, watch

    def sample_into(self, out: Int32Array, stream: Keystream) -> None:
        """As `DiscreteGaussian.sample_into`."""
        with self._watch.step("noise"):
            self._sampler.sample_into(out, stream)


class World:
    """Keys, roster and configuration; then one attempt after the other over the same."""

    def __init__(self, clients: int, params: int, dropout: float) -> None:
        self.params = params
        self.dropouts = int(clients * dropout)
        self.mesh_key = Ed25519PrivateKey.generate()
        self.server_key = generate_rsa_key()
        self.encryption_key_id = public_key_id(self.server_key.public_key())
        key, root = new_root(MESH, now=NOW, lifetime=timedelta(days=3650))
        self.root = root
        authority = Authority(mesh=MESH, key=key, chain=[root], now=NOW)
        rsa = [generate_rsa_key() for _ in range(min(KEYS, clients))]
        keys = [rsa[index % len(rsa)] for index in range(clients)]
        self.roster = [_entry(authority, keys[index], index) for index in range(clients)]
        self.entries = [codec.parse_roster_entry(raw) for raw in self.roster]
        self.keys = keys
        self.encoding = plan_encoding(
            clip_norm_l2=1.0,
            noise_multiplier=NOISE_MULTIPLIER,
            cohort_max=clients,
            coordinates=params,
        )
        self.configuration = self._configuration(max(dropout, LEAST_DROPOUT_FRACTION))
        statement = self.sign(
            m.ROUND_CONFIGURATION, codec.encode_round_configuration(self.configuration)
        )
        self.configuration_sha256 = digest(statement)
        variance = share_variance(
            self.encoding,
            least_survivors=self.configuration.min_survivors,
            colluders=colluders(clients, CORRUPT_FRACTION),
        )
        self.sampler = discrete_gaussian(variance)
        self.executor = ThreadPoolExecutor(THREADS)
        self.integers = np.empty(params, np.int32)

    def sign(self, type: str, payload: bytes) -> Statement:
        """As the mesh."""
        return sign_ed25519(type=type, payload=payload, private_key=self.mesh_key)

    def _configuration(self, dropout_fraction: float) -> m.RoundConfiguration:
        leaves = [
            weights.WeightLeaf(e.index, e.client_id, hashlib.sha256(raw).digest(), e.weight)
            for raw, e in zip(self.roster, self.entries, strict=True)
        ]
        root = weights.root(leaves)
        encryption = m.EncryptionKey(
            mesh_id=MESH,
            key_id=self.encryption_key_id,
            public_key_spki=public_key_der(self.server_key.public_key()),
            not_before_ms=NOW_MS,
            not_after_ms=NOW_MS + limits.SERVER_KEY_LIFETIME_MS,
        )
        return m.RoundConfiguration(
            mesh_id=MESH,
            round_id=ids.new_round_id(),
            attempt=1,
            model_id=ids.ModelId("bench"),
            mode=m.RoundMode.SEALED,
            base_version=1,
            model_sha256=bytes(32),
            parameters=self.params,
            lanes=(),
            clip_norm=self.encoding.clip_norm_l2,
            scale=2.0**self.encoding.scale_log2,
            bound_l2=self.encoding.bound_l2,
            noise_multiplier=NOISE_MULTIPLIER,
            privacy=m.PRIVACY_CLIENT_DP,
            epsilon_budget=10.0,
            delta=1e-6,
            roster_root=root.hash,
            roster_size=len(leaves),
            total_weight=root.total,
            max_weight=max(leaf.weight for leaf in leaves),
            min_survivors=len(leaves) - self.dropouts,
            deadline_ms=NOW_MS + 60_000,
            encryption_key=self.sign(m.ENCRYPTION_KEY, codec.encode_encryption_key(encryption)),
            hyperparameters={},
            plan_revision=1,
            optimizer_state_sha256=b"",
            created_at_ms=NOW_MS,
            secure_aggregation=m.SecureAggregation(
                CORRUPT_FRACTION, dropout_fraction, m.Adversary.SEMI_MALICIOUS
            ),
        )


def _entry(authority: Authority, key: RSAPrivateKey, index: int) -> bytes:
    client_id, session_id = ids.new_client_id(), ids.new_session_id()
    issued = authority.issue_client(certificate_request(key), client_id, now=NOW)
    check_in = m.CheckIn(MESH, client_id, session_id, ids.ModelId("bench"), 5, 3, "eu", NOW_MS)
    return codec.encode_roster_entry(
        m.RosterEntry(
            index=index,
            client_id=client_id,
            session_id=session_id,
            weight=limits.MAX_WEIGHT - index % 8,
            sample_bucket=5,
            quality_bucket=3,
            check_in=sign_rsa_pss(
                type=m.CHECK_IN, payload=codec.encode_check_in(check_in), private_key=key
            ),
            certificate_chain_der=issued.chain_der,
        )
    )
