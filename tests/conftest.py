"""Fixtures that every test may ask for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from boltz_protocol.errors import MeshError
from tests.support.epsilons import check_output, check_text

pytest_plugins = ["tests.support.postgres"]


@pytest.fixture(autouse=True, scope="session")
def _errors_tell_epsilons_whole() -> Iterator[None]:
    """Whatever error a test makes or is sent: no epsilon without unit, relation and delta."""
    made = MeshError.__init__

    def checked(
        error: MeshError,
        message: str,
        *,
        retry_after_ms: int | None = None,
        **metadata: str | int,
    ) -> None:
        check_text(message)
        made(error, message, retry_after_ms=retry_after_ms, **metadata)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MeshError, "__init__", checked)
        yield


@pytest.fixture
def capsys(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> pytest.CaptureFixture[str]:
    """pytest's own; what a test reads from it tells no epsilon without unit, relation and delta."""
    read = capsys.readouterr

    def checked() -> object:
        captured = read()
        check_output(captured.out)
        check_output(captured.err)
        return captured

    monkeypatch.setattr(capsys, "readouterr", checked)
    return capsys
