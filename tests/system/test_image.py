"""The Dockerfile, built without a registry or a daemon, and what is inside of the image."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.repository import ROOT

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]

TAG = "localhost/boltz-mesh:system-test"
#: No daemon, no user namespaces, no overlay file system; as in tools/build_image.sh.
ENVIRONMENT = {**os.environ, "BUILDAH_ISOLATION": "chroot", "STORAGE_DRIVER": "vfs"}

#: Runs inside of the container: a real health service, and the probe against both its answers.
PROBE_BOTH_ANSWERS = """
import runpy, grpc
from concurrent.futures import ThreadPoolExecutor
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
probe = runpy.run_path("/opt/boltz-mesh/health_probe.py")["main"]
server, servicer = grpc.server(ThreadPoolExecutor(1)), health.HealthServicer()
health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
server.start()
for name, code in (("SERVING", 0), ("NOT_SERVING", 1)):
    servicer.set("", getattr(health_pb2.HealthCheckResponse, name))
    assert probe([address]) == code
server.stop(None).wait()
"""

#: Starts the server as the image does, asks the probe until it serves, then stops it as an
#: orchestrator would. The ports are free ones: the container shares this machine's network.
START_PROBE_STOP = """
import os, runpy, signal, socket, subprocess, sys, time
with socket.socket() as probe_socket:
    probe_socket.bind(("127.0.0.1", 0))
    health_port = probe_socket.getsockname()[1]
os.environ.update(
    MESH_LISTEN__HEALTH_PORT=str(health_port), MESH_LISTEN__PORT="0", MESH_LISTEN__ENROLL_PORT="0"
)
probe = runpy.run_path("/opt/boltz-mesh/health_probe.py")["main"]
server = subprocess.Popen(["boltz-mesh", "up"])
deadline = time.monotonic() + 60
while probe([]) != 0:
    assert server.poll() is None, f"the server ended with {server.returncode}"
    assert time.monotonic() < deadline, "the server does not serve"
    time.sleep(0.2)
server.send_signal(signal.SIGTERM)
assert server.wait(timeout=30) == 0
"""


def buildah(*arguments: str) -> str:
    """Run buildah; return what it printed. A failure shows its words."""
    done = subprocess.run(
        ["buildah", *arguments], env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"buildah {arguments}: {done.stdout}{done.stderr}"
    return done.stdout.strip()


@pytest.fixture(scope="module")
def image() -> Iterator[str]:
    done = subprocess.run(
        ["tools/build_image.sh", TAG],
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    yield TAG
    buildah("rmi", "--force", TAG)


@pytest.fixture(scope="module")
def run(image: str) -> Iterator[Callable[..., str]]:
    """A function that runs a command in a container of the image, as the image's user."""
    container = buildah("from", "--pull-never", image)
    yield lambda *command: buildah("run", container, "--", *command)
    buildah("rm", container)


@pytest.fixture(scope="module")
def configuration(image: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(buildah("inspect", "--type", "image", image))
    configuration: dict[str, Any] = found["Docker"]["config"]
    return configuration


def test_it_runs_as_a_user_without_rights(run: Callable[..., str]) -> None:
    assert run("id", "-u") == "10001"
    assert run("stat", "-c", "%U %a", "/var/lib/boltz-mesh") == "boltz-mesh 700"
    writable = run("find", "/opt/boltz-mesh", "-writable", "-not", "-type", "l")
    assert not writable, "the server must not be able to change its own code"


def test_its_configuration_is_complete(configuration: dict[str, Any]) -> None:
    assert configuration["User"] == "10001:10001"
    assert configuration["Entrypoint"] == ["boltz-mesh"]
    assert configuration["WorkingDir"] == "/var/lib/boltz-mesh"
    assert "/var/lib/boltz-mesh" in configuration["Volumes"]
    assert configuration["Healthcheck"]["Test"][-1] == "/opt/boltz-mesh/health_probe.py"
    assert configuration["StopSignal"] == "SIGTERM"


def test_it_holds_the_server_and_nothing_of_the_build(run: Callable[..., str]) -> None:
    names = {line.partition("==")[0] for line in run("pip", "freeze").splitlines()}
    assert {name.partition(" ")[0] for name in names} >= {"boltz-mesh", "boltz-mesh-client"}
    assert not names & {"torch", "pytest", "grpcio-tools", "mypy", "hatchling"}
    assert run("sh", "-c", "ls -d /build 2>/dev/null || true") == ""
    assert run("sh", "-c", "command -v gcc || true") == ""


def test_its_command_starts(run: Callable[..., str]) -> None:
    assert "Usage" in run("boltz-mesh", "--help")


def test_its_health_probe_tells_serving_from_draining(run: Callable[..., str]) -> None:
    run("python3", "-c", PROBE_BOTH_ANSWERS)


def test_it_serves_and_stops_cleanly(run: Callable[..., str]) -> None:
    run("python3", "-c", START_PROBE_STOP)


def test_the_dockerfile_is_clean() -> None:
    subprocess.run([ROOT / ".venv" / "bin" / "hadolint", ROOT / "Dockerfile"], check=True)
