"""The server's settings: defaults, then a TOML file, then `MESH_SECTION__KEY` from the environment.

`DATABASE_URL` sets `database.url` as well, since that is the name hosts give it. Nothing else in
the product reads the environment.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from boltz_protocol.errors import ConfigurationError, MalformedMessage
from boltz_protocol.ids import parse_name

_PREFIX: Final = "MESH_"
Port = Annotated[int, Meta(ge=0, le=65535)]


class MeshSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What this mesh is called and where it keeps its files."""

    id: str = "boltz"
    data_dir: str = "boltz-data"
    replica: str = "replica-1"


class ListenSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the server listens, and what clients are told."""

    host: str = "127.0.0.1"
    port: Port = 7443
    enroll_port: Port = 7444
    #: Plain gRPC health service for probes that have no certificate; off unless set.
    health_port: Port | None = None
    #: Names and addresses in the server's certificate; the first goes into join strings.
    names: tuple[str, ...] = ("localhost", "127.0.0.1")


class DatabaseSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """PostgreSQL; empty means an embedded one in the data directory. The URL may hold a secret."""

    url: str = ""

    def __repr__(self) -> str:
        return "DatabaseSection(url=hidden)" if self.url else "DatabaseSection(embedded)"


class AuthoritySection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An outside certificate authority; all empty means one of our own, made on the first start."""

    certificate: str = ""
    key: str = ""
    chain: str = ""


class EnrollmentSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Enrolment policy."""

    always_requires_approval: bool = False


class PrivacySection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What this mesh demands of every plan; the same on all replicas."""

    #: Plans without noise are refused.
    production: bool = False
    #: What one client may spend over all models, for ever; no such budget unless set.
    client_epsilon: float | None = None
    client_delta: float = 1e-6


class ValidationSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Held-out data that contributions are measured on; the same on all replicas."""

    #: Folder of MODEL.npz files, read when the server starts; none unless set.
    folder: str = ""


class TelemetrySection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """OpenTelemetry: traces go to an OTLP gRPC endpoint where one is set."""

    otlp_endpoint: str = ""
    otlp_insecure: bool = False
    service_name: str = "boltz-mesh"
    log_level: str = "INFO"


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything the server can be told."""

    mesh: MeshSection = MeshSection()
    listen: ListenSection = ListenSection()
    database: DatabaseSection = DatabaseSection()
    authority: AuthoritySection = AuthoritySection()
    enrollment: EnrollmentSection = EnrollmentSection()
    privacy: PrivacySection = PrivacySection()
    validation: ValidationSection = ValidationSection()
    telemetry: TelemetrySection = TelemetrySection()

    @property
    def data_dir(self) -> Path:
        """Absolute path of the data directory."""
        return Path(self.mesh.data_dir).expanduser().absolute()


def load_config(
    file: Path | None, environment: Mapping[str, str], overrides: Mapping[str, Any] | None = None
) -> Config:
    """Read the settings.

    Args:
        file: a TOML file, or None.
        environment: usually `os.environ`.
        overrides: `{"section": {"key": value}}` from the command line; None values are left out.

    Raises:
        ConfigurationError: the file cannot be read, or a setting is unknown or out of range.
    """
    tree = {} if file is None else _read(file)
    if environment.get("DATABASE_URL"):
        tree.setdefault("database", {})["url"] = environment["DATABASE_URL"]
    for name, text in environment.items():
        section, found, key = name.removeprefix(_PREFIX).lower().partition("__")
        if name.startswith(_PREFIX) and found:
            tree.setdefault(section, {})[key] = _listed(section, key, text)
    for section, values in (overrides or {}).items():
        given = {key: value for key, value in values.items() if value is not None}
        if given:
            tree.setdefault(section, {}).update(given)
    try:
        config = msgspec.convert(tree, Config, strict=False)
        parse_name("mesh.id", config.mesh.id)
        parse_name("mesh.replica", config.mesh.replica)
    except msgspec.ValidationError as error:
        raise ConfigurationError(f"a setting is wrong: {error}") from error
    except MalformedMessage as error:
        raise ConfigurationError(f"a setting is wrong: {error.message}") from error
    if not config.listen.names:
        raise ConfigurationError('listen.names is empty; ["localhost"] would do')
    if bool(config.authority.certificate) != bool(config.authority.key):
        raise ConfigurationError("authority.certificate and authority.key go together")
    return config


def _read(file: Path) -> dict[str, dict[str, Any]]:
    try:
        tree = tomllib.loads(file.read_text())
    except OSError as error:
        raise ConfigurationError(f"cannot read {file}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{file} is not TOML: {error}") from error
    if not all(isinstance(section, dict) for section in tree.values()):
        raise ConfigurationError(f"{file}: every setting belongs in a [section]")
    return tree


def _listed(section: str, key: str, text: str) -> object:
    """The one setting that is a list is comma-separated in the environment."""
    return text.split(",") if (section, key) == ("listen", "names") else text
