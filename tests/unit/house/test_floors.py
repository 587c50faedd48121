"""Imports go downward only, without cycles, and the client's distribution stays light."""

from __future__ import annotations

import sys
from graphlib import CycleError, TopologicalSorter

import pytest

from tests.support.repository import Module, imports_of, requirements, shipped_modules

#: The floors of the house. A package may import from lower floors and from itself.
FLOORS = {
    "boltz_protocol": 0,
    "boltz_client": 1,
    "boltz_mesh.aggregation": 1,
    "boltz_mesh.privacy": 1,
    "boltz_mesh.trust": 1,
    "boltz_mesh.rounds": 2,
    "boltz_mesh.audit": 2,
    "boltz_mesh.storage": 3,
    "boltz_mesh.telemetry": 3,
    "boltz_mesh.services": 4,
    "boltz_mesh.coordinator": 5,
    "boltz_mesh.app": 6,
}
#: (importer, imported): neighbours on one floor that may look sideways, and why.
SIDEWAYS: dict[tuple[str, str], str] = {}
#: The places of the server that may start clients of their own: both run against a mesh that is
#: made for them and thrown away.
MAY_IMPORT_CLIENT = ("boltz_mesh.app.demo", "boltz_mesh.app.privacy_audit")

#: Import name -> distribution, for what boltz-mesh-client declares.
CLIENT_IMPORTS = {
    "cryptography": "cryptography",
    "google": "protobuf",
    "grpc": "grpcio",
    "grpc_status": "grpcio-status",
    "numpy": "numpy",
    "opentelemetry": "opentelemetry-api",
    "safetensors": "safetensors",
    "tenacity": "tenacity",
}
#: Import name -> (extra of boltz-mesh-client, the only modules that may import it).
OPTIONAL_CLIENT_IMPORTS = {
    "torch": ("torch", "boltz_client.adapters"),
    "sklearn": ("scikit-learn", "boltz_client.adapters"),
    "opacus": ("dp", "boltz_client.adapters.record_privacy"),
}


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def package_of(name: str) -> str | None:
    """The floor's package that a dotted name belongs to, or None outside of our packages."""
    if name == "boltz_mesh":
        return None
    found = [package for package in FLOORS if within(name, package)]
    if not found and within(name, "boltz_mesh"):
        raise AssertionError(f"{name}: give this package a floor in FLOORS")
    return found[0] if found else None


def violations(module: Module) -> list[str]:
    own = package_of(module.name)
    wrong = []
    for imported in imports_of(module):
        target = package_of(imported.target)
        where = f"{module.relative}:{imported.line} imports {imported.target}"
        if target is None or target == own:
            continue
        if own is None:
            wrong.append(f"{where}: the root package imports nothing")
        elif target == "boltz_client":
            if not any(within(module.name, place) for place in MAY_IMPORT_CLIENT):
                places = " and ".join(MAY_IMPORT_CLIENT)
                wrong.append(f"{where}: only {places} may use the client library")
        elif FLOORS[target] > FLOORS[own]:
            wrong.append(f"{where}: floor {FLOORS[own]} looks up to floor {FLOORS[target]}")
        elif FLOORS[target] == FLOORS[own] and (own, target) not in SIDEWAYS:
            wrong.append(f"{where}: sideways on floor {FLOORS[own]}; see SIDEWAYS")
    return wrong


def test_imports_go_downward() -> None:
    wrong = [line for module in shipped_modules() for line in violations(module)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("boltz_protocol.limits", "from boltz_client import client"),
        ("boltz_client.session", "import boltz_mesh.rounds.step"),
        ("boltz_mesh.rounds.step", "from boltz_mesh.storage.postgres import Pool"),
        ("boltz_mesh.privacy.budget", "def late():\n    from boltz_mesh.trust import newcomer"),
        ("boltz_mesh.services.registry", "import boltz_client.client"),
        ("boltz_mesh.services.registry", "from ..app import config"),
    ],
)
def test_the_wrong_direction_is_found(name: str, text: str) -> None:
    template = next(module for module in shipped_modules() if module.name == "boltz_mesh.app")
    path = template.path.with_name("imagined.py")
    assert violations(Module(name=name, path=path, text=text))


@pytest.mark.parametrize("place", ["demo.brokers", "privacy_audit.clients"])
def test_the_exemption_for_clients_of_our_own_is_narrow(place: str) -> None:
    template = next(module for module in shipped_modules() if module.name == "boltz_mesh.app")
    path = template.path.with_name("imagined.py")
    text = "import boltz_client"
    assert not violations(Module(name=f"boltz_mesh.app.{place}", path=path, text=text))
    for other in ("demonstration", "privacy_audits", "cli.privacy"):
        assert violations(Module(name=f"boltz_mesh.app.{other}", path=path, text=text))


def test_no_module_imports_itself_through_others() -> None:
    names = {module.name for module in shipped_modules()}
    graph: dict[str, set[str]] = {}
    for module in shipped_modules():
        edges = set()
        for imported in imports_of(module):
            owner = imported.target.rpartition(".")[0]
            edges |= {name for name in (imported.target, owner) if name in names}
        # A package's own head runs before its parts; that is no edge of ours.
        graph[module.name] = {name for name in edges if not within(module.name, name)}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail("imports in a circle: " + " -> ".join(reversed(error.args[1])))


def test_the_client_library_imports_only_what_it_declares() -> None:
    declared = requirements("boltz-mesh-client")
    wrong = []
    for module in shipped_modules():
        if not (within(module.name, "boltz_client") or within(module.name, "boltz_protocol")):
            continue
        for imported in imports_of(module):
            top = imported.target.partition(".")[0]
            if top in sys.stdlib_module_names or top in {"boltz_client", "boltz_protocol"}:
                continue
            if top in OPTIONAL_CLIENT_IMPORTS:
                _, where = OPTIONAL_CLIENT_IMPORTS[top]
                allowed = within(module.name, where)
            else:
                allowed = CLIENT_IMPORTS.get(top) in declared
            if not allowed:
                wrong.append(f"{module.relative}:{imported.line} imports {imported.target}")
    assert not wrong, "\n".join(wrong)


def test_optional_parts_of_the_client_library_are_extras() -> None:
    for extra, _ in OPTIONAL_CLIENT_IMPORTS.values():
        assert requirements("boltz-mesh-client", extra)


def test_every_sideways_look_is_still_used() -> None:
    used = {
        (package_of(module.name), package_of(imported.target))
        for module in shipped_modules()
        for imported in imports_of(module)
    }
    assert set(SIDEWAYS) <= used
