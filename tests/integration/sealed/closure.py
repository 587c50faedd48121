"""What follows from a view: every secret that somebody who holds it can compute.

The rules, applied until nothing new comes:

- 32 bytes are a private key if their public key was advertised, and a seed if a dealer's commitment
  opens to them. Whatever stands loose in the transcript is tried, and whatever is reconstructed, in
  every role and every attempt: a key that is used twice is known twice.
- A private share key opens the shares dealt to its owner, and those that its owner dealt.
- As many shares of one secret as the threshold says give the secret. Shares count from wherever
  they come, provided that their dealer's commitment opens to them.
- A private mask key gives the pair masks with every neighbour, a seed gives the self mask.

Colluding clients add the bytes that they drew from their generators. The rest of their state
follows: what they were told came from the server.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache

from boltz_protocol.errors import DecryptionFailed, MalformedMessage
from boltz_protocol.limits import SECRET_BYTES
from boltz_protocol.messages import ShareKind
from boltz_protocol.secagg.agreement import pair_stream_of, self_stream_of
from boltz_protocol.secagg.keys import KeyPair, commit_seed, commit_share, open_shares, share_key
from boltz_protocol.secagg.masks import MaskStream
from boltz_protocol.secagg.shamir import Interpolator
from tests.integration.sealed.view import Deal, Facts, Key, View

#: Attempt, number of the deal in it, kind.
_Secret = tuple[Key, int, ShareKind]


@dataclass(slots=True)
class Knowledge:
    """Secrets that are known.

    Attributes:
        mask_keys, share_keys: by public key.
        seeds: by attempt and position.
    """

    view: View
    mask_keys: dict[bytes, KeyPair] = field(default_factory=dict)
    share_keys: dict[bytes, KeyPair] = field(default_factory=dict)
    seeds: dict[tuple[Key, int], bytes] = field(default_factory=dict)
    _shares: defaultdict[_Secret, dict[int, bytes]] = field(
        default_factory=lambda: defaultdict(dict), repr=False
    )

    @classmethod
    def closed(cls, view: View, secrets: Iterable[bytes] = ()) -> Knowledge:
        """Everything that follows from a view and what colluding clients drew."""
        known = cls(view)
        for key, facts in view.attempts.items():
            for holder, share in facts.released:
                for number, deal in enumerate(facts.deals):
                    if deal.dealer == share.dealer:
                        known._take_share(
                            (key, number, share.kind), holder, share.share, share.salt
                        )
        news = {each for each in (*view.loose, *secrets) if len(each) == SECRET_BYTES}
        tried: set[bytes] = set()
        while True:
            for secret in news:
                known._try(secret)
            tried |= news
            known._open_shares()
            news = known._reconstructed() - tried
            if not news:
                return known

    # --- masks ----------------------------------------------------------------------------------

    def pair_stream(self, key: Key, own: int, other: int) -> MaskStream | None:
        """The mask that `own` applied for `other`, where either one's key is known."""
        attempt = self.view.attempts[key].attempt
        ends = attempt.mask_end(own), attempt.mask_end(other)
        for near, far in (ends, ends[::-1]):
            keys = self.mask_keys.get(near.mask_public_key)
            if keys is not None:
                stream = pair_stream_of(near, keys, far, attempt.context)
                return stream if near is ends[0] else stream.removed()
        return None

    def self_stream(self, key: Key, index: int) -> MaskStream | None:
        """A client's own mask, where its seed is known."""
        attempt = self.view.attempts[key].attempt
        seed = self.seeds.get((key, index))
        name = attempt.entries[index].client_id
        return None if seed is None else self_stream_of(name, seed, attempt.context)

    # --- rules ----------------------------------------------------------------------------------

    def _try(self, secret: bytes) -> None:
        """In every role that 32 bytes can have."""
        public = _public(secret)
        for key, facts in self.view.attempts.items():
            for advertised in facts.attempt.advertisements.values():
                if public == advertised.mask_public_key:
                    self.mask_keys[public] = KeyPair(secret)
                if public == advertised.share_public_key:
                    self.share_keys[public] = KeyPair(secret)
            for deal in facts.deals:
                opened = commit_seed(facts.attempt.context, deal.dealer, secret)
                if opened == deal.signed.seed_commitment:
                    self.seeds[key, deal.dealer] = secret

    def _open_shares(self) -> None:
        for key, facts in self.view.attempts.items():
            for number, deal in enumerate(facts.deals):
                for holder, sealed in deal.sealed.items():
                    opening = self._opening_key(facts, deal, holder) if sealed else None
                    if opening is None:
                        continue
                    try:
                        mask, mask_salt, seed, seed_salt = open_shares(opening, sealed)
                    except DecryptionFailed:
                        continue
                    self._take_share((key, number, ShareKind.MASK_KEY), holder, mask, mask_salt)
                    self._take_share((key, number, ShareKind.SEED), holder, seed, seed_salt)

    def _opening_key(self, facts: Facts, deal: Deal, holder: int) -> bytes | None:
        """What the shares from a dealer to a holder are sealed under, if either's key is known."""
        attempt = facts.attempt
        ends = [
            (attempt.entries[index].client_id, attempt.advertisements[index].share_public_key)
            for index in (deal.dealer, holder)
        ]
        for (_, near), (_, far) in (ends, ends[::-1]):
            keys = self.share_keys.get(near)
            if keys is not None:
                return share_key(keys.exchange(far), attempt.context, *ends)
        return None

    def _take_share(self, secret: _Secret, holder: int, share: bytes, salt: bytes) -> None:
        key, number, kind = secret
        facts = self.view.attempts[key]
        deal = facts.deals[number]
        if holder not in deal.signed.holders:
            return
        pair = deal.signed.commitments[deal.signed.holders.index(holder)]
        signed = pair[0] if kind is ShareKind.MASK_KEY else pair[1]
        context = facts.attempt.context
        if commit_share(context, deal.dealer, holder, kind, share, salt) == signed:
            self._shares[secret][holder] = share

    def _reconstructed(self) -> set[bytes]:
        secrets = set()
        for (key, _, _), shares in self._shares.items():
            threshold = self.view.attempts[key].attempt.agreement.graphs[0].threshold
            if len(shares) < threshold:
                continue
            some = dict(sorted(shares.items())[:threshold])
            try:
                secrets.add(Interpolator(threshold).reconstruct(some))
            except MalformedMessage:
                continue  # dealt as shares of nothing
        return secrets


@lru_cache(maxsize=1 << 16)
def _public(secret: bytes) -> bytes:
    return KeyPair(secret).public
