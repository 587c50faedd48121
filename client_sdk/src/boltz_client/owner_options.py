"""The owner's limits as options of the `boltz-client` command."""

from __future__ import annotations

import argparse
import math
from typing import Final

from boltz_client.owner import DEFAULT_DELTA, DEFAULT_MODES, OwnerLimits
from boltz_protocol import limits
from boltz_protocol.messages import RoundMode

_ANY_MODEL: Final = "*"


def owner_parser() -> argparse.ArgumentParser:
    """A parent for commands that take part in rounds."""
    found = argparse.ArgumentParser(add_help=False)
    owner = found.add_argument_group("limits of the data's owner; rounds outside are declined")
    owner.add_argument(
        "--mode",
        action="append",
        default=[],
        choices=[mode.name.lower() for mode in RoundMode],
        help="allow this mode and no other; may be given again (default: sealed)",
    )
    owner.add_argument("--smallest-cohort", type=int, default=1, help="fewest survivors")
    owner.add_argument("--least-noise", type=float, default=0.0, help="noise multiplier")
    owner.add_argument("--largest-share", type=float, default=1.0, help="of the total weight")
    owner.add_argument("--largest-clip", type=float, default=limits.MAX_CLIP_NORM, help="clip norm")
    owner.add_argument(
        "--largest-attempt", type=int, default=limits.MAX_ATTEMPTS, help="attempts of one round"
    )
    owner.add_argument(
        "--epsilon-budget",
        type=float,
        default=math.inf,
        help="most epsilon on one model in the client's own ledger, at --delta (default: no limit)",
    )
    owner.add_argument("--delta", type=float, default=DEFAULT_DELTA, help="(default: %(default)g)")
    owner.add_argument(
        "--known-peer",
        action="append",
        default=[],
        metavar="FINGERPRINT",
        help="SHA-256 of another client's certificate, got from its holder; may be given again",
    )
    owner.add_argument(
        "--least-known-peers", type=int, default=0, help="known peers that must be in the sum"
    )
    owner.add_argument(
        "--models",
        action="append",
        default=[],
        metavar="PATTERN",
        help='take part only for models such as "volatility-*"; may be given again',
    )
    return found


def owner_limits(options: argparse.Namespace) -> OwnerLimits:
    """What the options of `owner_parser` say. Raises: ConfigurationError."""
    return OwnerLimits(
        modes=frozenset(RoundMode[name.upper()] for name in options.mode) or DEFAULT_MODES,
        smallest_cohort=options.smallest_cohort,
        least_noise_multiplier=options.least_noise,
        largest_weight_share=options.largest_share,
        largest_clip_norm=options.largest_clip,
        largest_attempt=options.largest_attempt,
        epsilon_budget=options.epsilon_budget,
        delta=options.delta,
        known_peers=frozenset(text.lower().replace(":", "") for text in options.known_peer),
        least_known_peers=options.least_known_peers,
        models=tuple(options.models) or (_ANY_MODEL,),
    )
