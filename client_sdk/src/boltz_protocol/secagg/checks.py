"""The server's checks of what clients of sealed and grouped rounds send, signatures apart.

Signatures are verified before. The server is not trusted with any secret, so these keep the round
going, not its privacy: a message that would spoil it for others is refused when it comes in, and
its sender is known.
"""

from __future__ import annotations

import hmac
from collections.abc import Collection, Mapping, Sequence
from typing import NoReturn

from boltz_protocol.errors import MalformedMessage, ShareRefused
from boltz_protocol.limits import SEALED_SHARES_BYTES
from boltz_protocol.messages import RosterEntry, RoundConfiguration
from boltz_protocol.messages_sealed import (
    DealtShares,
    KeyAdvertisement,
    KeyRoster,
    NonceReveal,
    ReleasedShare,
    ShareKind,
    SharesReleased,
    SurvivorsSeen,
)
from boltz_protocol.secagg.attempt import Attempt
from boltz_protocol.secagg.bitmap import indexes
from boltz_protocol.secagg.keys import KeyPair, commit_nonce, commit_share


def check_advertisement(
    payload: KeyAdvertisement,
    *,
    configuration: RoundConfiguration,
    configuration_sha256: bytes,
    entry: RosterEntry,
) -> None:
    """Check fresh keys for this attempt from the client of a roster entry.

    Raises: MalformedMessage: another attempt, configuration, client or session, or a key with
        which neighbours could agree on nothing secret (their clients would refuse the round).
    """
    _check_attempt(payload.round_id, payload.attempt, configuration)
    _check_sender(payload.client_id, payload.session_id, entry)
    if payload.configuration_sha256 != configuration_sha256:
        raise MalformedMessage(
            "the advertisement is for another configuration", field="configuration_sha256"
        )
    probe = KeyPair.generate()
    for public in (payload.share_public_key, payload.mask_public_key):
        probe.exchange(public)


def check_reveal(
    reveal: NonceReveal,
    *,
    configuration: RoundConfiguration,
    key_roster: KeyRoster,
    index: int,
) -> None:
    """Check that a nonce opens the commitment of the member at `index`.

    Raises: MalformedMessage.
    """
    _check_attempt(reveal.round_id, reveal.attempt, configuration)
    members = indexes(key_roster.members, configuration.roster_size)
    commitments = dict(zip(members, key_roster.nonce_commitments, strict=True))
    if index not in commitments:
        raise MalformedMessage(f"position {index} is no member", field="nonce")
    if commit_nonce(reveal.nonce) != commitments[index]:
        raise MalformedMessage("the nonce does not open its commitment", field="nonce")


def check_dealt(
    attempt: Attempt, dealer: int, dealt: DealtShares, sealed_shares: Sequence[bytes]
) -> None:
    """Check that shares were dealt to exactly the holders that the graph says.

    Raises: MalformedMessage.
    """
    _check_attempt(dealt.round_id, dealt.attempt, attempt.configuration)
    _check_sender(dealt.client_id, dealt.session_id, attempt.entries[dealer])
    _check_key_roster(dealt.key_roster_sha256, attempt)
    if dealer not in attempt.graph_members:
        raise MalformedMessage(f"position {dealer} is not in the graph", field="holders")
    if dealt.holders != attempt.holders_of(dealer):
        raise MalformedMessage(
            "the shares are dealt to others than the graph says", field="holders"
        )
    if len(sealed_shares) != len(dealt.holders):
        raise MalformedMessage(
            f"{len(sealed_shares)} sealed shares for {len(dealt.holders)} holders",
            field="sealed_shares",
        )
    for holder, sealed in zip(dealt.holders, sealed_shares, strict=True):
        size = 0 if holder == dealer else SEALED_SHARES_BYTES
        if len(sealed) != size:
            raise MalformedMessage(
                f"the share for position {holder} has {len(sealed)} bytes, not {size}",
                field="sealed_shares",
            )


def check_seen(attempt: Attempt, signer: int, seen: SurvivorsSeen, survivors: bytes) -> None:
    """Check that the client at `signer` signed the survivors that the mesh announced.

    Args:
        survivors: the announced bitmap.

    Raises: MalformedMessage.
    """
    _check_attempt(seen.round_id, seen.attempt, attempt.configuration)
    _check_sender(seen.client_id, seen.session_id, attempt.entries[signer])
    _check_key_roster(seen.key_roster_sha256, attempt)
    if seen.survivors != survivors:
        raise MalformedMessage("the survivors are not those announced", field="survivors")


def check_released(  # noqa: PLR0917 - in the order of the protocol
    attempt: Attempt,
    holder: int,
    released: SharesReleased,
    dealt: Mapping[int, DealtShares],
    survivors: Collection[int],
    sharers: Collection[int],
) -> frozenset[int]:
    """Check every share that the client at `holder` releases against its dealer's commitment.

    A dealer may be missing: it may have dealt this holder something that did not open. That none
    is named twice, the message's own type ensures. In a group without survivors there is no sum to
    unmask, and nobody releases anything.

    Args:
        dealt: sharer -> what it signed.

    Returns: the dealers covered.

    Raises: MalformedMessage: another attempt. ShareRefused, naming the releaser: a share that it
        does not hold, of the wrong kind, or other than the one dealt to it.
    """
    _check_attempt(released.round_id, released.attempt, attempt.configuration)
    if holder not in sharers:
        _refuse(attempt, holder, "releases shares and is no sharer")
    graph = attempt.graph_of(holder)
    if not any(index in graph for index in survivors):
        _refuse(attempt, holder, "releases shares in a group without survivors")
    for share in released.shares:
        if share.dealer not in sharers or holder not in attempt.holders_of(share.dealer):
            _refuse(attempt, holder, f"holds no share of position {share.dealer}")
        if share.kind is not wanted_kind(share.dealer, survivors):
            _refuse(attempt, holder, f"releases the wrong kind for position {share.dealer}")
        if not _opens(attempt, holder, share, dealt[share.dealer]):
            _refuse(
                attempt, holder, f"releases another share of position {share.dealer} than dealt"
            )
    return frozenset(share.dealer for share in released.shares)


def wanted_kind(dealer: int, survivors: Collection[int]) -> ShareKind:
    """A survivor's self mask is removed, and the pair masks of any other sharer."""
    return ShareKind.SEED if dealer in survivors else ShareKind.MASK_KEY


def _opens(attempt: Attempt, holder: int, share: ReleasedShare, dealt: DealtShares) -> bool:
    pair = dealt.commitments[dealt.holders.index(holder)]
    signed = pair[0] if share.kind is ShareKind.MASK_KEY else pair[1]
    found = commit_share(attempt.context, share.dealer, holder, share.kind, share.share, share.salt)
    return hmac.compare_digest(found, signed)


def enough(
    attempt: Attempt,
    sharers: Collection[int],
    covered: Mapping[int, frozenset[int]],
    survivors: Collection[int],
) -> bool:
    """Whether every secret that the sums need can be put together.

    That is each sharer's, but for groups without survivors, which have no sum.

    Args:
        covered: holder -> dealers of whom it released a valid share.
    """
    counts = dict.fromkeys(sharers, 0)
    for dealers in covered.values():
        for dealer in dealers:
            counts[dealer] += 1
    summed = attempt.by_group(survivors)
    return all(
        count >= attempt.graph_of(dealer).threshold
        for dealer, count in counts.items()
        if attempt.group_of(dealer) in summed
    )


def _check_attempt(round_id: str, attempt: int, configuration: RoundConfiguration) -> None:
    if round_id != configuration.round_id or attempt != configuration.attempt:
        raise MalformedMessage("the message is for another round or attempt", field="round_id")


def _check_sender(client_id: str, session_id: str, entry: RosterEntry) -> None:
    if client_id != entry.client_id or session_id != entry.session_id:
        raise MalformedMessage("client and session are not those of the roster", field="session_id")


def _check_key_roster(sha256: bytes, attempt: Attempt) -> None:
    if sha256 != attempt.key_roster_sha256:
        raise MalformedMessage("the message is for another key roster", field="key_roster_sha256")


def _refuse(attempt: Attempt, holder: int, what: str) -> NoReturn:
    raise ShareRefused(
        f"position {holder} {what}", client_id=attempt.entries[holder].client_id, index=holder
    )
