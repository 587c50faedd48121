"""The server's settings: what overrides what, and what is refused with a sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from boltz_mesh.app.config import Config, load_config
from boltz_protocol.errors import ConfigurationError


def test_defaults_work() -> None:
    config = load_config(None, {})
    assert config == Config()
    assert config.data_dir == Path.cwd() / "boltz-data"


def test_the_command_line_wins_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "mesh.toml"
    file.write_text('[mesh]\nid = "one"\nreplica = "a"\n[listen]\nport = 1\nnames = ["x", "y"]\n')
    environment = {
        "MESH_MESH__ID": "two",
        "MESH_LISTEN__PORT": "2",
        "MESH_ENROLLMENT__ALWAYS_REQUIRES_APPROVAL": "true",
        "MESH_LISTEN__NAMES": "a.example,10.0.0.1",
        "DATABASE_URL": "postgresql://somewhere/x",
        "MESHES": "not ours",
    }
    config = load_config(file, environment, {"listen": {"port": 3, "host": None}})
    assert (config.mesh.id, config.mesh.replica, config.listen.port) == ("two", "a", 3)
    assert config.listen.names == ("a.example", "10.0.0.1")
    assert config.enrollment.always_requires_approval
    assert config.database.url == "postgresql://somewhere/x"
    assert "somewhere" not in repr(config)


def test_privacy_of_the_mesh_from_the_environment() -> None:
    environment = {"MESH_PRIVACY__PRODUCTION": "true", "MESH_PRIVACY__CLIENT_EPSILON": "8"}
    privacy = load_config(None, environment).privacy
    assert (privacy.production, privacy.client_epsilon, privacy.client_delta) == (True, 8.0, 1e-6)
    assert load_config(None, {}).privacy.client_epsilon is None


@pytest.mark.parametrize(
    ("environment", "match"),
    [
        ({"MESH_LISTEN__PORT": "seven"}, "listen.port"),
        ({"MESH_LISTEN__PORT": "70000"}, "listen.port"),
        ({"MESH_NOSUCH__KEY": "1"}, "nosuch"),
        ({"MESH_MESH__NOSUCH": "1"}, "nosuch"),
        ({"MESH_MESH__ID": "Not A Name"}, "mesh.id"),
        ({"MESH_MESH__REPLICA": ""}, "mesh.replica"),
        ({"MESH_AUTHORITY__KEY": "key.pem"}, "go together"),
        ({"MESH_PRIVACY__CLIENT_EPSILON": "eight"}, "privacy.client_epsilon"),
    ],
)
def test_settings_that_are_wrong(environment: dict[str, str], match: str) -> None:
    with pytest.raises(ConfigurationError, match=match):
        load_config(None, environment)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"not TOML", "not TOML"),
        (b"\xff\xfe", "not TOML"),
        (b"port = 1", "section"),
        (b"[listen]\nnames = []", "names"),
    ],
)
def test_files_that_are_wrong(tmp_path: Path, content: bytes, match: str) -> None:
    file = tmp_path / "mesh.toml"
    file.write_bytes(content)
    with pytest.raises(ConfigurationError, match=match):
        load_config(file, {})
    missing: Any = tmp_path / "none.toml"
    with pytest.raises(ConfigurationError, match="cannot read"):
        load_config(missing, {})
