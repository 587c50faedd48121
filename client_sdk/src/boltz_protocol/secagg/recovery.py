"""The server's recovery: from released shares to the masks that are still in the sum.

Of a survivor the seed comes back, and its self mask goes off; of a sharer that did not survive the
mask key comes back, and its half of the pair masks with the survivors is put in, so that they
cancel (Bonawitz et al. 2017, figure 4, round 4). Never both of one client: `checks.check_released`
lets one kind through.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from boltz_protocol.errors import DealerBlamed, MalformedMessage
from boltz_protocol.messages_sealed import DealtShares, SharesReleased
from boltz_protocol.secagg.agreement import pair_stream_of, self_stream_of
from boltz_protocol.secagg.attempt import Attempt
from boltz_protocol.secagg.keys import KeyPair, commit_seed
from boltz_protocol.secagg.masks import MaskStream
from boltz_protocol.secagg.shamir import Interpolator

# An error's details travel in a header: enough to name who matters.
_MOST_NAMED: Final = 8


@dataclass(frozen=True, slots=True)
class Recovered:
    """Secrets that remove masks; they live until the sum is formed.

    Attributes:
        seeds: survivor -> the 32-byte seed of its self mask.
        mask_keys: other sharer -> its X25519 pair.
    """

    seeds: Mapping[int, bytes] = field(repr=False)
    mask_keys: Mapping[int, KeyPair] = field(repr=False)


def recover(
    attempt: Attempt,
    dealt: Mapping[int, DealtShares],
    released: Mapping[int, SharesReleased],
    survivors: Collection[int],
    sharers: Collection[int],
) -> Recovered:
    """Put every sharer's secret together from exactly as many shares as the threshold says.

    Sharers of a group without survivors are left alone: there is nothing to unmask.

    Args:
        dealt: sharer -> what it signed.
        released: holder -> its shares, each of which `checks.check_released` let through, and
            which are `checks.enough`.

    Raises: DealerBlamed naming those whose shares, though they are the ones signed for, do not give
        the secret that was signed for.
    """
    summed = attempt.by_group(survivors)
    shares: dict[int, dict[int, bytes]] = {
        dealer: {} for dealer in sorted(sharers) if attempt.group_of(dealer) in summed
    }
    # Ascending, so that as many dealers as possible share a set of holders and its coefficients.
    for holder in sorted(released):
        for share in released[holder].shares:
            of_dealer = shares[share.dealer]
            if len(of_dealer) < attempt.graph_of(share.dealer).threshold:
                of_dealer[holder] = share.share
    interpolators = {
        group: Interpolator(attempt.agreement.graphs[group].threshold) for group in summed
    }
    seeds: dict[int, bytes] = {}
    mask_keys: dict[int, KeyPair] = {}
    blamed: list[int] = []
    for dealer, of_dealer in shares.items():
        interpolator = interpolators[attempt.group_of(dealer)]
        assert len(of_dealer) == interpolator.threshold, "recovery waits for enough shares"
        try:
            secret = interpolator.reconstruct(of_dealer)
        except MalformedMessage:
            blamed.append(dealer)
            continue
        if dealer in survivors:
            seeds[dealer] = secret
            good = commit_seed(attempt.context, dealer, secret) == dealt[dealer].seed_commitment
        else:
            mask_keys[dealer] = KeyPair(secret)
            good = mask_keys[dealer].public == attempt.advertisements[dealer].mask_public_key
        if not good:
            blamed.append(dealer)
    if blamed:
        names = [attempt.entries[dealer].client_id for dealer in blamed[:_MOST_NAMED]]
        raise DealerBlamed(
            f"{len(blamed)} clients dealt shares that do not give their secrets, "
            f"the first at position {blamed[0]}",
            dealers=tuple(blamed),
            client_id=names[0],
            client_ids=",".join(names),
        )
    return Recovered(seeds, mask_keys)


def mask_streams_to_remove(
    attempt: Attempt,
    recovered: Recovered,
    survivors: Collection[int],
    sharers: Collection[int],
) -> dict[int, tuple[MaskStream, ...]]:
    """What to apply to the plain sum of a group's survivors' masked vectors to unmask it.

    Self masks are subtracted. A sharer that did not survive would have applied the opposite of
    what each surviving neighbour applied: its own half of their pair mask is what is missing.

    Returns: place in `attempt.groups` -> its streams, for each group that has survivors: of a
        sealed round the only one, 0.
    """
    left = attempt.by_group(set(sharers).difference(survivors))
    return {
        group: tuple(_streams(attempt, recovered, of_group, left.get(group, ())))
        for group, of_group in attempt.by_group(survivors).items()
    }


def _streams(
    attempt: Attempt, recovered: Recovered, survivors: Collection[int], left: Collection[int]
) -> Iterator[MaskStream]:
    """Of one group: its survivors, and its sharers that did not survive."""
    alive = frozenset(survivors)
    for index in survivors:
        client_id = attempt.entries[index].client_id
        yield self_stream_of(client_id, recovered.seeds[index], attempt.context).removed()
    for index in left:
        own, keys = attempt.mask_end(index), recovered.mask_keys[index]
        for neighbour in attempt.graph_of(index).neighbours(index):
            if neighbour in alive:
                yield pair_stream_of(own, keys, attempt.mask_end(neighbour), attempt.context)
