"""The container's health probe against a real gRPC health service."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from deploy import health_probe


@pytest.fixture
def served() -> Iterator[tuple[health.HealthServicer, str]]:
    """A health service that serves, and its address."""
    server = grpc.server(ThreadPoolExecutor(max_workers=1))
    servicer = health.HealthServicer()
    servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield servicer, f"127.0.0.1:{port}"
    server.stop(grace=None).wait()


def test_a_serving_server_is_healthy(
    served: tuple[health.HealthServicer, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert health_probe.main([served[1]]) == 0
    assert "SERVING" in capsys.readouterr().out


def test_a_draining_server_is_not(served: tuple[health.HealthServicer, str]) -> None:
    servicer, address = served
    servicer.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    assert health_probe.main([address]) == 1


def test_the_port_may_come_from_the_environment(
    served: tuple[health.HealthServicer, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(health_probe.PORT_SETTING, served[1].rpartition(":")[2])
    assert health_probe.main([]) == 0


def test_silence_is_unhealthy_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    # Port 9 (discard) of the loopback: nothing of ours listens there.
    assert health_probe.main(["127.0.0.1:9"]) == 1
    assert "no answer: UNAVAILABLE" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["a", "b"]])
def test_wrong_usage_is_told_apart(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(health_probe.PORT_SETTING, raising=False)
    assert health_probe.main(arguments) == 2
    assert "usage" in capsys.readouterr().err
