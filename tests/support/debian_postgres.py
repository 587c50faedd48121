"""Debian's PostgreSQL with TLS and passwords, for system tests; the embedded one has no TLS."""

from __future__ import annotations

import datetime
import ipaddress
import os
import pwd
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

USER = "boltz"
#: Who may connect, and how: over TLS with a password, over plain TCP never.
_HBA = "hostssl all all 127.0.0.1/32 scram-sha-256\nhostnossl all all 0.0.0.0/0 reject\n"


@dataclass(frozen=True, slots=True)
class DebianPostgres:
    """A running server that speaks TLS under the name `localhost`."""

    port: int
    password: str = field(repr=False)
    #: Certificate that the server's name is checked against.
    authority: Path
    #: A certificate of somebody else.
    foreign_authority: Path

    def url(self, host: str = "localhost", **options: str) -> str:
        """A connection string with libpq's options, such as `sslmode="verify-full"`."""
        query = "&".join(f"{key}={value}" for key, value in options.items())
        return f"postgresql://{USER}:{self.password}@{host}:{self.port}/postgres?{query}"


def binaries() -> Path:
    """The newest installed server's folder."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    assert found, "PostgreSQL is missing; run tools/install_system.sh"
    return found[-1].parent


def self_signed(names: list[x509.GeneralName]) -> tuple[bytes, bytes]:
    """PEM of a certificate that is its own authority, and of its key; valid for an hour."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "system test")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM), key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _as_server_user(command: list[str]) -> list[str]:
    """PostgreSQL refuses to run as root; Debian's package brings a user for it."""
    return ["runuser", "-u", "postgres", "--", *command] if os.geteuid() == 0 else command


def _run(command: list[str]) -> None:
    done = subprocess.run(
        _as_server_user(command), capture_output=True, text=True, check=False, cwd="/"
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"


def _private(path: Path, content: bytes) -> None:
    """A file that only the server's user can read, as PostgreSQL demands for keys."""
    path.write_bytes(content)
    path.chmod(0o600)
    if os.geteuid() == 0:
        owner = pwd.getpwnam("postgres")
        os.chown(path, owner.pw_uid, owner.pw_gid)


@contextmanager
def debian_postgres() -> Iterator[DebianPostgres]:
    """Start a server of its own folder, port, password and authority; stop and remove it after."""
    folder = Path(tempfile.mkdtemp(prefix="boltz-debian-pg-"))
    try:
        folder.chmod(0o755)
        password, port = secrets.token_hex(16), _free_port()
        certificate, key = self_signed(
            [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.2"))]
        )
        foreign, _ = self_signed([x509.DNSName("localhost")])
        (folder / "authority.pem").write_bytes(certificate)
        (folder / "foreign.pem").write_bytes(foreign)
        for name, content in (
            ("server.key", key),
            ("server.pem", certificate),
            ("password", password.encode()),
            ("pg_hba.conf", _HBA.encode()),
        ):
            _private(folder / name, content)
        data = folder / "data"
        data.mkdir(mode=0o700)
        if os.geteuid() == 0:
            shutil.chown(data, "postgres", "postgres")
        initdb = [str(binaries() / "initdb"), "-D", str(data), "-U", USER, "--no-sync"]
        _run([*initdb, f"--pwfile={folder / 'password'}", "--auth=scram-sha-256"])
        settings = {
            "port": str(port),
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "''",
            "hba_file": f"'{folder / 'pg_hba.conf'}'",
            "fsync": "off",
            "ssl": "on",
            "ssl_cert_file": f"'{folder / 'server.pem'}'",
            "ssl_key_file": f"'{folder / 'server.key'}'",
            "ssl_min_protocol_version": "'TLSv1.3'",
        }
        options = " ".join(f"-c {name}={value}" for name, value in settings.items())
        control = [str(binaries() / "pg_ctl"), "-D", str(data), "-w", "-t", "30"]
        # pg_ctl waits until the server answers, and until it is gone.
        _run([*control, "-l", str(data / "log"), "-o", options, "start"])
        try:
            yield DebianPostgres(port, password, folder / "authority.pem", folder / "foreign.pem")
        finally:
            _run([*control, "-m", "fast", "stop"])
    finally:
        shutil.rmtree(folder)
