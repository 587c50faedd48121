"""Words that must not stand in the code, and the few places where one may, each with its reason."""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.support.repository import Module, other_modules, shipped_modules

#: What is looked for in shipped code (comments and strings excepted), and why it must not be there.
FORBIDDEN = {
    r"\bpickle\b|\bcloudpickle\b|\bmarshal\b|\bshelve\b": "runs code that a sender chose",
    r"allow_pickle *= *True": "runs code that a sender chose",
    # A function may be handed a source of randomness (`Random`, `Generator` as types); nobody
    # makes a weak one.
    r"\b(np|numpy) *\. *random\b(?! *\. *Generator\b(?! *\())": "neither cryptographic nor wide",
    r"^\s*import +random\b|\bfrom +random +import +(?!Random\b|SystemRandom\b)|\bRandom *\(": (
        "neither cryptographic nor wide"
    ),
    r"\binsecure_channel\b|\badd_insecure_port\b": "plaintext on the network",
    r"verify *= *False|CERT_NONE|_create_unverified_context": "talks to anybody",
    r"except +(Exception|BaseException)?[^:]*: *pass\b": "drops work without a word",
    r"\btime *\. *sleep *\(|\basyncio *\. *sleep *\(": "waits for a state by guessing",
    r"\beval *\(|\bexec *\(": "runs text",
    r"shell *= *True": "runs text",
    r"\bNotImplementedError\b": "unfinished",
    r"\bprint *\( *\)? *#": "left over from looking for something",
}
#: Looked for in comments and strings as well, everywhere.
UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
#: What tests and tools must not do.
FORBIDDEN_IN_TESTS = {
    r"mark *\. *skip|pytest *\. *skip|\bskipif\b|importorskip": "a skipped test proves nothing",
    r"\bxfail\b": "a test that may fail proves nothing",
}


@dataclass(frozen=True, slots=True)
class Exemption:
    """A place where a forbidden word may stand: the file, a part of the line, and the reason."""

    path: str
    line: str
    reason: str


EXEMPTIONS: tuple[Exemption, ...] = (
    Exemption(
        path="client_sdk/src/boltz_client/authority.py",
        line="context.verify_mode = ssl.CERT_NONE",
        reason="nothing is sent here; the root must have the fingerprint from the join string",
    ),
    Exemption(
        path="client_sdk/src/boltz_client/session.py",
        line="asyncio.sleep(jitter.uniform(",
        reason="spreads the return of many clients after a restart; it waits for no state",
    ),
    Exemption(
        path="src/boltz_mesh/app/server.py",
        line="probes.add_insecure_port(",
        reason="the health-only port, off unless set: orchestrators' probes have no certificate",
    ),
    Exemption(
        path="src/boltz_mesh/app/demo/mlp.py",
        line="np.random.Generator(np.random.PCG64(START_SEED))",
        reason="a network's first weights are public and the same for everyone",
    ),
    Exemption(
        path="src/boltz_mesh/app/demo/statistics.py",
        line="np.random.Generator(np.random.PCG64(BOOTSTRAP_SEED))",
        reason="a bootstrap over public test errors must come out the same each time",
    ),
    Exemption(
        path="src/boltz_mesh/app/simulate/study.py",
        line="np.random.Generator(np.random.PCG64([seed, origin, purpose]))",
        reason="a simulated attack must come out the same for its printed seed; it protects nobody",
    ),
)


def code_lines(module: Module) -> Iterator[tuple[int, str]]:
    """(line number, text) with comments and the inside of strings blanked out."""
    lines = module.text.splitlines()
    blanked = [list(line) for line in lines]
    for token in tokenize.generate_tokens(io.StringIO(module.text).readline):
        if token.type not in (tokenize.COMMENT, tokenize.STRING):
            continue
        (first, start), (last, end) = token.start, token.end
        for number in range(first, last + 1):
            line = blanked[number - 1]
            low = start if number == first else 0
            high = end if number == last else len(line)
            line[low:high] = " " * (high - low)
    for number, line in enumerate(blanked, start=1):
        yield number, "".join(line)


def exempt(module: Module, line: str) -> Exemption | None:
    for exemption in EXEMPTIONS:
        if exemption.path == module.relative and exemption.line in line:
            return exemption
    return None


def hits(module: Module, forbidden: dict[str, str]) -> Iterator[tuple[int, str, str]]:
    """(line number, text of the line, reason) of every forbidden word, exempt ones included."""
    lines = module.text.splitlines()
    for number, code in code_lines(module):
        for pattern, reason in forbidden.items():
            if re.search(pattern, code):
                yield number, lines[number - 1], reason


def complaints(modules: tuple[Module, ...], forbidden: dict[str, str]) -> list[str]:
    return [
        f"{module.relative}:{number}: {line.strip()}  ({reason})"
        for module in modules
        for number, line, reason in hits(module, forbidden)
        if exempt(module, line) is None
    ]


def test_shipped_code_holds_no_forbidden_word() -> None:
    found = complaints(shipped_modules(), FORBIDDEN)
    assert not found, "\n".join(found)


def test_no_test_is_skipped_or_allowed_to_fail() -> None:
    found = complaints(other_modules(), FORBIDDEN_IN_TESTS)
    assert not found, "\n".join(found)


def test_no_unfinished_work() -> None:
    own = "tests/unit/house/test_words.py"
    found = [
        f"{module.relative}:{number}: {line.strip()}"
        for module in (*shipped_modules(), *other_modules())
        if module.relative != own
        for number, line in enumerate(module.text.splitlines(), start=1)
        if UNFINISHED.search(line)
    ]
    assert not found, "\n".join(found)


def test_every_exemption_is_still_needed() -> None:
    used = {
        exemption
        for module in shipped_modules()
        for _, line, _ in hits(module, FORBIDDEN)
        if (exemption := exempt(module, line)) is not None
    }
    stale = set(EXEMPTIONS) - used
    assert not stale, f"nothing to exempt any more: {stale}"
    assert all(exemption.reason for exemption in EXEMPTIONS)


@pytest.mark.parametrize(
    "text",
    [
        "import pickle\n",
        "noise = np.random.normal(size=3)\n",
        "import random\n",
        "from random import randint\n",
        "source = Random(7)\n",
        "channel = grpc.aio.insecure_channel(address)\n",
        "await asyncio.sleep(0.1)\n",
        "raise NotImplementedError\n",
        "subprocess.run(line, shell=True)\n",
    ],
)
def test_forbidden_words_are_found(text: str) -> None:
    module = shipped_modules()[0]
    assert list(hits(Module(name="imagined", path=module.path, text=text), FORBIDDEN))


def test_an_injected_source_of_randomness_is_fine() -> None:
    text = (
        "from random import Random\n"
        "def pick(random: Random, generator: np.random.Generator) -> int:\n"
        "    return random.randrange(9)\n"
    )
    module = shipped_modules()[0]
    assert not list(hits(Module(name="imagined", path=module.path, text=text), FORBIDDEN))


def test_words_in_comments_and_strings_are_left_alone() -> None:
    text = '"""Never pickle."""\n# np.random is for tests\nnote = "no insecure_channel"\n'
    module = shipped_modules()[0]
    assert not list(hits(Module(name="imagined", path=module.path, text=text), FORBIDDEN))
