from __future__ import annotations

import threading
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from boltz_mesh.services.identity.authority import AuthorityKey
from boltz_mesh.services.identity.authority_files import (
    open_or_create_authority,
    outside_authority,
)
from boltz_protocol.certificates import pem_chain
from boltz_protocol.errors import CertificateInvalid, ConfigurationError, MalformedMessage
from tests.support.keys import NOW, make_ca


def key_pem(key: AuthorityKey | Ed25519PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def write(path: Path, content: bytes, mode: int = 0o600) -> Path:
    path.write_bytes(content)
    path.chmod(mode)
    return path


def test_first_start_makes_it_and_the_next_one_finds_it(tmp_path: Path) -> None:
    folder = tmp_path / "state" / "authority"
    first = open_or_create_authority(folder, mesh="demo", now=NOW)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.name for path in folder.iterdir()} == {"authority.key", "authority.pem"}
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in folder.iterdir())
    assert list(folder.parent.iterdir()) == [folder]
    second = open_or_create_authority(folder, mesh="demo", now=NOW)
    assert second.fingerprint == first.fingerprint
    assert second.root_pem == first.root_pem


def test_an_empty_folder_is_used(tmp_path: Path) -> None:
    folder = tmp_path / "authority"
    folder.mkdir(mode=0o755)
    open_or_create_authority(folder, mesh="demo", now=NOW)
    assert folder.stat().st_mode & 0o777 == 0o700


def test_servers_that_start_at_once_agree(tmp_path: Path) -> None:
    folder = tmp_path / "authority"
    start = threading.Barrier(8)
    found: list[str] = []

    def work() -> None:
        start.wait()
        found.append(open_or_create_authority(folder, mesh="demo", now=NOW).fingerprint)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("name", [".", "authority.key"])
def test_open_permissions_are_refused_with_advice(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "authority"
    open_or_create_authority(folder, mesh="demo", now=NOW)
    path = folder / name
    path.chmod(path.stat().st_mode | 0o040)
    with pytest.raises(ConfigurationError, match="chmod"):
        open_or_create_authority(folder, mesh="demo", now=NOW)


def test_damage_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "authority"
    open_or_create_authority(folder, mesh="demo", now=NOW)
    other = tmp_path / "other"
    open_or_create_authority(other, mesh="demo", now=NOW)
    key = (folder / "authority.key").read_bytes()
    chain = (folder / "authority.pem").read_bytes()
    for name, content, message in (
        ("authority.key", b"", "not an unencrypted private key"),
        ("authority.key", key[:-60], "not an unencrypted private key"),
        ("authority.key", key_pem(Ed25519PrivateKey.generate()), "neither an EC nor an RSA"),
        ("authority.key", (other / "authority.key").read_bytes(), "does not belong"),
        ("authority.pem", b"", "certificates in PEM"),
        ("authority.pem", bytes(1 << 20), "certificates in PEM"),
        ("authority.pem", (other / "authority.pem").read_bytes(), "does not belong"),
    ):
        write(folder / name, content)
        with pytest.raises(ConfigurationError, match=message):
            open_or_create_authority(folder, mesh="demo", now=NOW)
        write(folder / "authority.key", key)
        write(folder / "authority.pem", chain)
    for name in ("authority.pem", "authority.key"):
        (folder / name).unlink()
        with pytest.raises(ConfigurationError, match="cannot be read"):
            open_or_create_authority(folder, mesh="demo", now=NOW)
        write(folder / "authority.key", key)
        write(folder / "authority.pem", chain)


def test_another_mesh_and_another_time_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "authority"
    open_or_create_authority(folder, mesh="demo", now=NOW)
    with pytest.raises(ConfigurationError, match="not of the mesh 'dem'"):
        open_or_create_authority(folder, mesh="dem", now=NOW)
    with pytest.raises(CertificateInvalid, match="expired"):
        open_or_create_authority(folder, mesh="demo", now=NOW + timedelta(days=3651))
    with pytest.raises(MalformedMessage):
        open_or_create_authority(tmp_path / "new", mesh="No Name", now=NOW)
    assert not (tmp_path / "new").exists()


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    file = write(tmp_path / "file", b"")
    with pytest.raises(ConfigurationError, match="cannot be made"):
        open_or_create_authority(file / "authority", mesh="demo", now=NOW)
    with pytest.raises(ConfigurationError):
        open_or_create_authority(file, mesh="demo", now=NOW)
    dangling = tmp_path / "dangling"
    dangling.symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigurationError, match="cannot be made"):
        open_or_create_authority(dangling, mesh="demo", now=NOW)
    assert {path.name for path in tmp_path.iterdir()} == {"file", "dangling"}


def test_outside_root_and_intermediate(tmp_path: Path) -> None:
    root = make_ca("outside root")
    middle = make_ca("issuer", issuer=root, path_length=0)
    # As Kubernetes mounts a secret: readable by the pod's group.
    root_key = write(tmp_path / "root.key", key_pem(root[0]), 0o440)
    root_cert = write(tmp_path / "root.pem", pem_chain([root[1]]), 0o444)
    mine = outside_authority(
        certificate_path=root_cert, key_path=root_key, chain_path=None, mesh="demo", now=NOW
    )
    assert mine.root == root[1]
    key = write(tmp_path / "issuer.key", key_pem(middle[0]))
    alone = write(tmp_path / "issuer.pem", pem_chain([middle[1]]))
    whole = write(tmp_path / "whole.pem", pem_chain([middle[1], root[1]]))
    for certificate, chain in ((alone, root_cert), (whole, None)):
        mine = outside_authority(
            certificate_path=certificate, key_path=key, chain_path=chain, mesh="demo", now=NOW
        )
        issued = mine.issue_operator("ann", now=NOW).issued
        assert issued.chain[1:] == (middle[1],)
    with pytest.raises(ConfigurationError, match="self-signed root"):
        outside_authority(
            certificate_path=alone, key_path=key, chain_path=None, mesh="demo", now=NOW
        )


def test_outside_files_that_do_not_do(tmp_path: Path) -> None:
    root = make_ca("outside root")
    key = write(tmp_path / "root.key", key_pem(root[0]))
    cert = write(tmp_path / "root.pem", pem_chain([root[1]]))
    absent = tmp_path / "absent"
    for key_path, certificate_path, message in (
        (absent, cert, "cannot be read"),
        (key, absent, "cannot be read"),
        (tmp_path, cert, "others can reach|cannot be read"),
        (cert, cert, "not an unencrypted private key"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            outside_authority(
                certificate_path=certificate_path,
                key_path=key_path,
                chain_path=None,
                mesh="demo",
                now=NOW,
            )
    key.chmod(0o444)
    with pytest.raises(ConfigurationError, match="chmod 440"):
        outside_authority(
            certificate_path=cert, key_path=key, chain_path=None, mesh="demo", now=NOW
        )
