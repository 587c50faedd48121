"""The two ends of a share: a client deals its two secrets, and opens what others dealt to it.

The secrets are the private key behind its pair masks and the seed of its self mask. Each holder
gets one share of both, sealed for it alone, and the dealer signs a salted commitment to every share
(Bonawitz et al. 2017, section 6; the commitments are ours, so that a wrong share is told from a
wrong dealer).
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from boltz_protocol.errors import DecryptionFailed
from boltz_protocol.limits import SECRET_BYTES
from boltz_protocol.messages_sealed import DealtShare, ReleasedShare, ShareKind
from boltz_protocol.secagg import keys, shamir

#: So many bytes from the operating system's generator (`secrets.token_bytes`).
Randomness = Callable[[int], bytes]


@dataclass(frozen=True, slots=True)
class HeldShare:
    """One dealer's two shares in the hands of one holder; at most one of them is ever released."""

    mask_key: bytes = field(repr=False)
    mask_key_salt: bytes = field(repr=False)
    seed: bytes = field(repr=False)
    seed_salt: bytes = field(repr=False)

    def released(self, dealer: int, kind: ShareKind) -> ReleasedShare:
        """The one share that is asked for."""
        if kind is ShareKind.SEED:
            return ReleasedShare(dealer, kind, self.seed, self.seed_salt)
        return ReleasedShare(dealer, kind, self.mask_key, self.mask_key_salt)

    def commitments(self, context: bytes, dealer: int, holder: int) -> tuple[bytes, bytes]:
        """To the share of the mask key and to that of the seed (32 bytes each)."""
        return (
            keys.commit_share(
                context, dealer, holder, ShareKind.MASK_KEY, self.mask_key, self.mask_key_salt
            ),
            keys.commit_share(context, dealer, holder, ShareKind.SEED, self.seed, self.seed_salt),
        )


@dataclass(frozen=True, slots=True)
class Deal:
    """What goes to the holders, in their order.

    Attributes:
        commitments: for each holder, to its share of the mask key and to that of the seed.
        sealed: for each holder; empty for the dealer itself.
        kept: the dealer's own share, where it holds one.
    """

    commitments: tuple[tuple[bytes, bytes], ...]
    sealed: tuple[bytes, ...]
    kept: HeldShare | None = field(repr=False)


def deal(
    *,
    context: bytes,
    dealer: int,
    holders: Sequence[int],
    threshold: int,
    mask_private_key: bytes,
    seed: bytes,
    seal_keys: Mapping[int, bytes],
    randomness: Randomness,
) -> Deal:
    """Split both secrets and seal a share of each for every holder.

    Args:
        holders: positions, ascending.
        threshold: shares that give a secret back.
        seal_keys: holder -> key, for all holders but the dealer. A key seals once.
    """

    def below(bound: int) -> int:
        # Uniform by rejection: each draw succeeds with probability above one half.
        bits = bound.bit_length()
        while True:
            number = int.from_bytes(randomness(-(-bits // 8)), "big") >> (-bits % 8)
            if number < bound:
                return number

    mask_shares = shamir.split(mask_private_key, threshold, holders, draw=below)
    seed_shares = shamir.split(seed, threshold, holders, draw=below)
    commitments = []
    sealed = []
    kept = None
    for holder in holders:
        share = HeldShare(
            mask_key=mask_shares[holder],
            mask_key_salt=randomness(SECRET_BYTES),
            seed=seed_shares[holder],
            seed_salt=randomness(SECRET_BYTES),
        )
        commitments.append(share.commitments(context, dealer, holder))
        if holder == dealer:
            kept = share
            sealed.append(b"")
        else:
            sealed.append(
                keys.seal_shares(
                    seal_keys[holder],
                    share.mask_key,
                    share.mask_key_salt,
                    share.seed,
                    share.seed_salt,
                )
            )
    return Deal(tuple(commitments), tuple(sealed), kept)


def open_dealt(dealt: DealtShare, key: bytes, *, context: bytes, holder: int) -> HeldShare | None:
    """What a dealer sealed for this holder; None where it dealt what nobody can use.

    A share that does not open, or not under the dealer's commitment, is worthless at the server:
    the holder goes on without it, and the dealer is reconstructed from others' shares.
    """
    try:
        share = HeldShare(*keys.open_shares(key, dealt.sealed_share))
    except DecryptionFailed:
        return None
    found = b"".join(share.commitments(context, dealt.dealer, holder))
    signed = dealt.mask_key_commitment + dealt.seed_commitment
    return share if hmac.compare_digest(found, signed) else None
