"""What an audit found, as data and in words. Pure."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from boltz_mesh.app.privacy_audit.bounds import gaussian_bound, one_run_bound
from boltz_mesh.app.privacy_audit.canaries import Outcome
from boltz_mesh.app.privacy_audit.options import (
    CONFIDENCE,
    TELLING_SHARE,
    AuditMode,
    AuditOptions,
)
from boltz_mesh.app.privacy_audit.trial import LedgerFigure
from boltz_mesh.privacy.mechanisms import RELATION_WORDS, UNIT_WORDS

Method = Literal["gaussian", "one-run"]
Verdict = Literal["holds", "refuted", "blind"]

#: Method -> what it takes for granted.
ASSUMPTIONS: Final[dict[Method, str]] = {
    "gaussian": (
        "the trade-off of one release is a Gaussian mechanism's, and guesses in one round are "
        "independent (the canaries' directions are orthogonal)"
    ),
    "one-run": "none beyond differential privacy itself",
}
#: Method -> where it is from.
SOURCES: Final[dict[Method, str]] = {
    "gaussian": "Nasr et al. 2023, Tight Auditing of Differentially Private Machine Learning",
    "one-run": (
        "Steinke, Nasr, Jagielski 2023, Privacy Auditing with One (1) Training Run, theorem 5.2"
    ),
}


class Bound(msgspec.Struct, frozen=True, kw_only=True):
    """A lower bound on epsilon, at the ledger's delta, unit and relation.

    Attributes:
        guesses: that it counts; the attacker abstained from the others.
    """

    method: Method
    epsilon: float
    delta: float
    unit: str
    relation: str
    guesses: int
    right: int
    assumption: str
    source: str


class Findings(msgspec.Struct, frozen=True, kw_only=True):
    """What the attack got out of one kind of rounds.

    Attributes:
        right: guesses of `pairs` that were right, all coins guessed.
    """

    pairs: int
    right: int
    bounds: tuple[Bound, ...]

    @property
    def best(self) -> Bound:
        """The largest bound."""
        return max(self.bounds, key=lambda bound: bound.epsilon)

    def bound(self, method: Method) -> Bound:
        """The bound of one method."""
        return next(bound for bound in self.bounds if bound.method == method)


class Ledger(msgspec.Struct, frozen=True, kw_only=True):
    """The figure under audit: what the mesh's ledger says of one release about one client."""

    epsilon: float
    delta: float
    unit: str
    relation: str


class AuditReport(msgspec.Struct, frozen=True, kw_only=True):
    """The whole result.

    Attributes:
        rounds: with noise, and as many without.
        canaries: clients in each round.
        noise_multiplier: of the plan.
        confidence: of each bound by itself.
        share: the largest bound with noise over the ledger's epsilon.
        seconds: all together.
    """

    mode: AuditMode
    rounds: int
    canaries: int
    noise_multiplier: float
    ledger: Ledger
    confidence: float
    with_noise: Findings
    without_noise: Findings
    share: float
    verdict: Verdict
    words: str
    command: str
    finished_at: str
    seconds: float


def report_of(
    options: AuditOptions,
    *,
    noised: Outcome,
    bare: Outcome,
    ledger: LedgerFigure,
    guesses: int,
    seconds: float,
    finished_at: str,
) -> AuditReport:
    """Bounds and verdict.

    Args:
        guesses: of the assumption-free bound with noise, fixed before the coins were tossed;
            without noise every coin is guessed.
        finished_at: ISO 8601, UTC.
    """
    told = Ledger(
        epsilon=ledger.epsilon, delta=ledger.delta, unit=ledger.unit, relation=ledger.relation
    )
    with_noise = findings_of(noised, guesses, told)
    without = findings_of(bare, bare.pairs, told)
    verdict = verdict_of(told, with_noise, without)
    return AuditReport(
        mode=options.mode,
        rounds=options.trials,
        canaries=options.canaries,
        noise_multiplier=options.noise_multiplier,
        ledger=told,
        confidence=CONFIDENCE,
        with_noise=with_noise,
        without_noise=without,
        share=with_noise.best.epsilon / told.epsilon,
        verdict=verdict,
        words=words_of(verdict, told, with_noise, without),
        command=options.command(),
        finished_at=finished_at,
        seconds=round(seconds, 1),
    )


def findings_of(outcome: Outcome, guesses: int, ledger: Ledger) -> Findings:
    """Both bounds, at the ledger's delta, unit and relation."""
    delta = ledger.delta
    errors = outcome.errors()
    right = outcome.surest_right(guesses)
    epsilons: dict[Method, tuple[float, int, int]] = {
        "gaussian": (gaussian_bound(errors, delta, CONFIDENCE), errors.total, errors.right),
        "one-run": (
            one_run_bound(outcome.pairs, guesses, right, delta=delta, confidence=CONFIDENCE),
            guesses,
            right,
        ),
    }
    return Findings(
        pairs=outcome.pairs,
        right=errors.right,
        bounds=tuple(
            Bound(
                method=method,
                epsilon=epsilon,
                delta=delta,
                unit=ledger.unit,
                relation=ledger.relation,
                guesses=counted,
                right=hits,
                assumption=ASSUMPTIONS[method],
                source=SOURCES[method],
            )
            for method, (epsilon, counted, hits) in epsilons.items()
        ),
    )


def verdict_of(ledger: Ledger, with_noise: Findings, without: Findings) -> Verdict:
    """`refuted` where a bound exceeds the ledger; `blind` where the attack would not have seen it.

    The control decides the second: without noise there is no privacy, so an attack that cannot
    prove more than the ledger's epsilon there is no test of it.
    """
    if with_noise.best.epsilon > ledger.epsilon:
        return "refuted"
    return "blind" if without.best.epsilon <= ledger.epsilon else "holds"


def scope(ledger: Ledger) -> str:
    """Unit, relation and delta, which every epsilon carries."""
    unit = next((words for key, words in UNIT_WORDS.items() if key == ledger.unit), ledger.unit)
    relation = next(
        (words for key, words in RELATION_WORDS.items() if key == ledger.relation), ledger.relation
    )
    return f"at delta {ledger.delta:g}; unit: {unit}; relation: {relation}"


def words_of(verdict: Verdict, ledger: Ledger, with_noise: Findings, without: Findings) -> str:
    """The verdict for people."""
    best, control = with_noise.best, without.best
    percent = f"{100 * best.epsilon / ledger.epsilon:.0f}%"
    facts = (
        f"the ledger says epsilon {ledger.epsilon:.2f} for one release ({scope(ledger)}); the "
        f"attack proves at least {best.epsilon:.2f} ({percent}) with {100 * CONFIDENCE:g}% "
        "confidence"
    )
    seen = (
        f"With the noise off it proves at least {control.epsilon:.2f}, so it would have seen "
        "noise that is missing."
    )
    match verdict:
        case "refuted":
            return (
                f"Refuted: {facts}. Less noise is added than the ledger counts, or an update moves "
                "the sum by more than its clip norm. (A right ledger is refuted by chance in less "
                f"than {100 * (1 - CONFIDENCE):g}% of audits: run it again.)"
            )
        case "blind":
            return (
                f"No verdict: even with the noise off the attack proves no more than epsilon "
                f"{control.epsilon:.2f}, where the ledger says {ledger.epsilon:.2f} "
                f"({scope(ledger)}). The canaries do not reach the published model as they should."
            )
        case "holds":
            weak = (
                " That is too little to say much; more --trials say more."
                if best.epsilon < TELLING_SHARE * ledger.epsilon
                else ""
            )
            return f"Nothing speaks against the ledger: {facts}.{weak} {seen}"


def to_json(report: AuditReport) -> bytes:
    """The report as one JSON document."""
    return msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n"
