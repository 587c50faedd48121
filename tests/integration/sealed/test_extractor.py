"""A sealed round with noise and a dropout in every phase, over real gRPC: what is there to learn.

Of eight clients one deals no shares, one's vector arrives whole and is refused, and one signs and
leaves. Six survive, the fewest that the plan allows; one may collude.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import combinations, product

import numpy as np
import pytest
import pytest_asyncio

from boltz_protocol.errors import DigestMismatch
from boltz_protocol.v1 import aggregator_pb2 as agg
from tests.integration.sealed.algebra import centred
from tests.integration.sealed.closure import Knowledge
from tests.integration.sealed.extractor import (
    Combination,
    Extraction,
    Label,
    Reading,
    extract,
    is_no_mask,
)
from tests.integration.sealed.players import (
    BUDGET,
    SIZE,
    Player,
    Tapped,
    begin,
    check_noise,
    each,
    end,
    noise_in,
    secrets_of,
)
from tests.integration.sealed.reading import read
from tests.integration.sealed.transcript import SUBMIT_UPDATE, Transcript
from tests.integration.sealed.view import View
from tests.support.calls import refused
from tests.support.clients import published, reached, submit

SETTINGS = "[secure_aggregation]\ncorrupt_fraction = 0.125\ndropout_fraction = 0.375\n"
THRESHOLD = 5
SILENT, REFUSED, GONE = 2, 5, 7
SURVIVORS = (0, 1, 3, 4, 6, 7)
UPLOADS = (*SURVIVORS, REFUSED)


@dataclass(frozen=True, slots=True)
class Played:
    """The round, by position, and all that the server handled."""

    players: list[Player]
    transcript: Transcript = field(repr=False)
    view: View = field(repr=False)

    @property
    def round_id(self) -> str:
        return self.players[0].offer.configuration.round_id

    def read(self, transcript: Transcript) -> View:
        """As a thief of less than all reads it."""
        mesh_id = self.players[0].offer.configuration.mesh_id
        return read(transcript, mesh_id).within(self.round_id)

    def labels(self, positions: Collection[int]) -> list[Label]:
        return [self.players[position].label() for position in positions]

    def collude(self, positions: Collection[int]) -> Extraction:
        return extract(self.view, secrets_of([self.players[position] for position in positions]))

    def check(self, found: Combination, *, clients: int, protects: bool = True) -> None:
        """That it is the same combination of the true vectors, and the noise of so many."""
        residue = noise_in(found, self.players)
        configuration = self.players[0].offer.configuration
        check_noise(configuration, residue, clients=clients, protects=protects)


@pytest_asyncio.fixture(scope="module")
async def played(tapped: Tapped) -> Played:
    players = await begin(
        tapped,
        tapped.clients,
        "mixed",
        min=len(SURVIVORS),
        privacy="client-dp",
        noise=1.0,
        tables=BUDGET + SETTINGS,
    )
    silent, unlucky, gone = (players[position] for position in (SILENT, REFUSED, GONE))
    sharers = [player for player in players if player is not silent]
    await each(players, Player.advertise)
    await silent.sealed.key_roster()
    await silent.sealed.peers()
    await silent.leave()
    await each(sharers, Player.deal)
    await each(sharers, Player.take_shares)
    sealed = unlucky.masked()
    with refused(DigestMismatch):
        await submit(
            unlucky.sealed.client, sealed, statement=unlucky.announced(sealed, sha256=bytes(32))
        )
    survivors = [players[position] for position in SURVIVORS]
    await each(survivors, Player.upload)
    round_id = players[0].offer.configuration.round_id
    await each(survivors, Player.sign)
    await reached(tapped.mesh, round_id, agg.PHASE_UNMASKING)
    await gone.leave()
    await each([player for player in survivors if player is not gone], Player.release)
    assert (await published(tapped.mesh, round_id)).received == len(SURVIVORS)
    end(players)
    transcript = await tapped.tap.transcript()
    return Played(players, transcript, read(transcript, tapped.mesh.name).within(round_id))


@pytest.mark.parametrize("reading", Reading)
def test_the_survivors_sum_is_the_only_combination(played: Played, reading: Reading) -> None:
    extraction = extract(played.view, reading=reading)
    # What was refused arrived all the same.
    assert sorted(label.position for label in extraction.labels) == sorted(UPLOADS)
    assert extraction.is_spanned_by([extraction.row(*played.labels(SURVIVORS))])
    (sum_,) = extraction.found
    assert set(sum_.weights.values()) == {1}
    played.check(sum_, clients=len(SURVIVORS))
    # And it is what the server wrote down.
    aggregate = played.view.only.aggregate
    assert aggregate is not None
    np.testing.assert_array_equal(sum_.values, aggregate)


def test_a_seed_of_each_survivor_and_a_mask_key_of_each_other_sharer(played: Played) -> None:
    known = Knowledge.closed(played.view)
    facts = played.view.only
    assert facts.attempt.agreement.graphs[0].threshold == THRESHOLD
    assert {position for _, position in known.seeds} == set(SURVIVORS)
    assert set(known.mask_keys) == {facts.attempt.advertisements[REFUSED].mask_public_key}
    assert not known.share_keys
    # The search had something to search in.
    assert len(played.view.loose) > 100


@pytest.mark.parametrize("colluders", [*combinations(range(8), 1), (1, 6), (0, 2, 5), (0, 1, 3, 4)])
def test_colluders_learn_what_the_others_sum_to(played: Played, colluders: Sequence[int]) -> None:
    """Short of a threshold they see their own part of the sum, of which they know the noise too."""
    extraction = played.collude(colluders)
    honest = [position for position in SURVIVORS if position not in colluders]
    rows = [
        extraction.row(*played.labels(each))
        for each in (honest, *zip(set(colluders) & set(UPLOADS)))
    ]
    assert extraction.is_spanned_by(rows)
    assert len(extraction.found) == len(rows)
    tolerated = len(colluders) == 1
    played.check(extraction.combine(rows[0]), clients=len(honest), protects=tolerated)


def test_as_many_colluders_as_the_threshold_open_everything(played: Played) -> None:
    """So the extractor does put shares of both kinds together, wherever they come from."""
    extraction = played.collude(SURVIVORS[:THRESHOLD])
    assert extraction.is_spanned_by(np.eye(len(UPLOADS), dtype=np.int64))
    assert len(extraction.found) == len(UPLOADS)
    for combination in extraction.found:
        played.check(combination, clients=1, protects=False)


def test_no_small_combination_escapes_the_algebra(played: Played) -> None:
    """Without any reasoning about masks: all combinations by -1, 0 and 1, tried one by one."""
    extraction = extract(played.view)
    vectors = np.array([upload[:256] for upload in extraction.uploads])
    small = {
        weights
        for weights in product((-1, 0, 1), repeat=len(vectors))
        if any(weights) and is_no_mask(centred(np.array(weights) @ vectors))
    }
    whole = extraction.row(*played.labels(SURVIVORS))
    assert small == {tuple(whole), tuple(-weight for weight in whole)}


def test_tables_blobs_and_keys_say_the_same(played: Played) -> None:
    """Whoever takes all of it in the middle of the round can do what the server can."""
    extraction = extract(played.read(played.transcript.at_rest()))
    # An update that is refused leaves nothing behind.
    assert sorted(label.position for label in extraction.labels) == list(SURVIVORS)
    assert extraction.is_spanned_by([[1] * len(SURVIVORS)])
    (sum_,) = extraction.found
    played.check(sum_, clients=len(SURVIVORS))


def test_without_the_key_encryption_key_tables_and_blobs_say_nothing(played: Played) -> None:
    stolen = played.transcript.at_rest().without_kek()
    assert sum(map(len, stolen.blobs.values())) > len(SURVIVORS) * 3 * SIZE
    view = played.read(stolen)
    facts = view.only
    assert (facts.uploads, facts.released, facts.aggregate) == ((), (), None)
    assert len(facts.deals) == len(SURVIVORS) + 1
    known = Knowledge.closed(view)
    assert not known.seeds
    assert not known.mask_keys


def test_the_tap_misses_nothing(played: Played) -> None:
    """Every table that a round writes to, every message that was kept, every vector."""
    rows = [
        row.values
        for row in played.transcript.rows
        if row.table == "round_messages" and row.values["round_id"] == played.round_id
    ]
    kept = Counter(kind for kind, _ in {(row["kind"], row["position"]) for row in rows})
    assert kept == {
        "key-advertisement": 8,
        "dealt-shares": 7,
        "survivors-seen": len(SURVIVORS),
        "released-shares": THRESHOLD,
    }
    tables = {row.table for row in played.transcript.rows}
    assert tables >= {
        "federated_updates",
        "round_events",
        "round_inbox",
        "round_snapshots",
        "round_statements",
        "server_keys",
    }
    sent = [call for call in played.transcript.calls if call.method == SUBMIT_UPDATE]
    assert len(sent) >= len(played.view.only.uploads) == len(UPLOADS)
