"""The trust score of a client about which nothing is known.

No conduct is scored yet, so every client has this one score: the middle of the range. With equal
scores trust cancels out of the weighted mean. A score is an integer in 1/256ths, so that every
language computes the same weight from it.
"""

from __future__ import annotations

from typing import Final

#: A score of 256 would be full trust (1.0).
TRUST_DENOMINATOR: Final = 256
#: 0.5, in 1/256ths.
NEWCOMER_TRUST: Final = 128

assert 0 < NEWCOMER_TRUST <= TRUST_DENOMINATOR
