"""What the run shows and what it does not, in sentences made from its own numbers.

Nothing here is written in advance: a sentence appears only where the run has the rows it speaks
of, and its words follow the sign and the interval of the difference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from boltz_mesh.app.demo.report import Interval, Privacy, Result
from boltz_mesh.app.demo.settings import SCOPE

Results = Mapping[str, Result]

#: A cost that would round to 0.0% or 0.1% is not called one.
UNSEEN: Final = 0.001
#: Two errors this close (1%) are called about as good as each other.
CLOSE: Final = 0.01
#: A reference within 2% of the mesh's error is called close: the noise seeds alone move it by 1%.
LITTLE: Final = 0.02


def findings(
    results: Results, intervals: Sequence[Interval], privacy: Privacy | None
) -> tuple[str, ...]:
    """What the run shows, one sentence a comparison."""
    sentences = [_comparison(i) for i in intervals if i.worse != "federated_dp"]
    cost = _relative(results, "federated_dp", "federated")
    if cost is not None and privacy is not None:
        epsilon, moved = f"Epsilon {privacy.epsilon:.2g} ({SCOPE})", f"{100 * abs(cost):.1f}%"
        if abs(cost) < UNSEEN:
            sentences.append(f"{epsilon} cost nothing that can be seen: less than 0.1% of error.")
        elif cost > 0:
            sentences.append(f"{epsilon} raised the error by {moved}.")
        else:
            luck = f"it fell by {moved}, which is the luck of the noise"
            sentences.append(f"{epsilon} did not raise the error in this run ({luck}).")
    cold = _relative(results, "cold_start_federated", "cold_start_best_local")
    if cold is not None:
        sentences.append(
            "For a broker that never took part, the error of the federated network is "
            f"{100 * abs(cold):.0f}% {'below' if cold < 0 else 'above'} that of a network trained "
            "on its own newest quarter. (Trained in numpy beside the mesh, not through it.)"
        )
    return tuple(sentences)


def caveats(results: Results, intervals: Sequence[Interval], years: int) -> tuple[str, ...]:
    """What the run does not show."""
    sentences = [
        "This is a forecast of volatility, not of returns. It shows the mechanism (training, "
        "privacy, transport, versions), not a money machine.",
    ]
    mesh = _best_mesh(results)
    for name, words in (
        ("public_index", "the newest eight years of the public index alone"),
        ("public_index_all_history", "all history of the public index"),
    ):
        gap = _relative(results, name, mesh) if mesh else None
        if gap is not None:
            little = ": on this task the clients' own data add little to public data"
            sentences.append(
                f"A model trained on {words}, with no client's data at all, is {_about(gap)} "
                f"{mesh}{little if gap <= LITTLE else ''}."
            )
    local, free = results.get("best_local"), results.get("best_local_any_strength")
    if local is not None and free is not None and free.mse_mean < local.mse_mean * 0.99:
        sentences.append(
            "The local model is strongest when its own data hardly count: with any shrinkage "
            f"allowed its error is {free.mse_mean:.4f} instead of {local.mse_mean:.4f}, about "
            "that of the public start. Measure the mesh against both."
        )
    if years < 10:
        sentences.append(
            f"{years} years are few: an interval over them says how these years differ from each "
            "other, not what the next one brings. The option --full tests every year."
            if years > 1
            else "One year is no spread: its interval says how the stocks differ, not what the "
            "next year brings. The option --full tests every year."
        )
    open_ends = [i for i in intervals if i.low <= 0 <= i.high]
    if open_ends:
        pairs = ", ".join(f"{i.better} against {i.worse}" for i in open_ends)
        sentences.append(f"The interval includes zero, so nothing is settled, for: {pairs}.")
    sentences.append(
        "Desks are disjoint in rows, yet a row's features look back at earlier prices of the same "
        "stock, which may lie in an older desk."
    )
    return tuple(sentences)


def _comparison(interval: Interval) -> str:
    """One paired difference in words; its numbers stand in the table beside it."""
    words = "less" if interval.mean >= 0 else "more"
    settled = "includes" if interval.low <= 0 <= interval.high else "excludes"
    return (
        f"{interval.better} has {100 * abs(interval.relative):.1f}% {words} error than "
        f"{interval.worse}: smaller in {interval.years_better} of {interval.years} years and for "
        f"{interval.stocks_better} of {interval.stocks} stocks; the interval {settled} zero."
    )


def _about(gap: float) -> str:
    """How a reference compares whose error is (1 + gap) times the mesh's."""
    if abs(gap) <= CLOSE:
        return "about as good as"
    return f"{100 * abs(gap):.1f}% {'higher' if gap > 0 else 'lower'} in error than"


def _best_mesh(results: Results) -> str | None:
    return next((name for name in ("federated_dp", "federated") if name in results), None)


def _relative(results: Results, name: str, base: str) -> float | None:
    """Error of `name` relative to `base`, minus one."""
    if name not in results or base not in results:
        return None
    return results[name].mse_mean / results[base].mse_mean - 1.0
