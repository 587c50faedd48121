"""The server's half of secure aggregation, in one place to import from.

The way of an attempt: advertisements are checked and make the `key_roster`; with the nonces they
make an `Attempt`; what clients deal, sign and release is checked against it; `recover` puts the
secrets together and `mask_streams_to_remove` says what to apply to the sum. `notices` makes what
the clients are shown. Pure: storage, signatures and time are the callers'.
"""

from boltz_protocol.secagg.attempt import Attempt, key_roster, leaves_of
from boltz_protocol.secagg.checks import (
    check_advertisement,
    check_dealt,
    check_released,
    check_reveal,
    check_seen,
    enough,
    wanted_kind,
)
from boltz_protocol.secagg.notices import (
    key_roster_notice,
    peers_notice,
    shares_notice,
    signatures_notice,
    survivors_payload,
)
from boltz_protocol.secagg.recovery import Recovered, mask_streams_to_remove, recover

__all__ = [
    "Attempt",
    "Recovered",
    "check_advertisement",
    "check_dealt",
    "check_released",
    "check_reveal",
    "check_seen",
    "enough",
    "key_roster",
    "key_roster_notice",
    "leaves_of",
    "mask_streams_to_remove",
    "peers_notice",
    "recover",
    "shares_notice",
    "signatures_notice",
    "survivors_payload",
    "wanted_kind",
]
