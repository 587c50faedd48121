from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from boltz_client.keystore import KeyStore, certificate_request, generate_client_key
from boltz_mesh.services.identity.authority import client_key_of_request
from boltz_protocol.certificates import load_pem_chain, pem_chain
from boltz_protocol.errors import (
    CertificateInvalid,
    ConfigurationError,
    KeyStoreLocked,
    MalformedMessage,
    StateConflict,
)
from boltz_protocol.join import JoinString, new_token
from tests.support.keys import (
    CLIENT,
    NOW,
    OTHER_CLIENT,
    authority,
    client_certificate,
    foreign_authority,
    other_rsa_key,
    short_rsa_key,
    vector_rsa_key,
)
from tests.unit.identity.test_authority_files import key_pem


def join_string() -> JoinString:
    return JoinString("demo", "host:1", "host:2", authority().fingerprint, new_token())


def create(folder: Path) -> KeyStore:
    return KeyStore.create(folder, join_string(), vector_rsa_key())


def enrol(store: KeyStore) -> None:
    root = authority().root
    store.complete_enrolment(CLIENT, client_certificate().chain, root, now=NOW)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("template") / "store"
    with create(folder) as store:
        enrol(store)
    return folder


@pytest.fixture
def enrolled(tmp_path: Path, template: Path) -> Path:
    """An enrolled store; copied, since each write of a store waits for the disk."""
    return Path(shutil.copytree(template, tmp_path / "store"))


def modes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}


def test_life_of_a_store(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "store"
    assert not KeyStore.exists(folder)
    with create(folder) as store:
        assert store.client_id is None
        request_key = store.request_key
        assert len(request_key) == 64
        assert store.chain == ()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert modes(folder) == dict.fromkeys(("lock", "key.pem", "mesh.json"), 0o600)
    assert KeyStore.exists(folder)
    with KeyStore.open(folder) as store:
        assert store.request_key == request_key
        assert store.identity.mesh_address == "host:2"
        enrol(store)
        enrol(store)
        assert store.client_id == CLIENT
    assert set(modes(folder)) == {"lock", "key.pem", "mesh.json", "chain.pem", "root.pem"}
    assert set(modes(folder).values()) == {0o600}
    with KeyStore.open(folder) as store:
        assert store.client_id == CLIENT
        assert store.request_key == request_key
        assert store.chain == client_certificate().chain
        assert store.chain_pem == client_certificate().chain_pem
        assert store.root == authority().root
        assert store.root_pem == authority().root_pem
        assert store.not_after == client_certificate().not_after
        assert store.private_key.private_numbers() == vector_rsa_key().private_numbers()
        assert store.private_key_pem == key_pem(vector_rsa_key())


def test_request_keys_differ_and_the_token_is_not_kept(tmp_path: Path) -> None:
    join = join_string()
    keys = set()
    for name in ("a", "b"):
        with KeyStore.create(tmp_path / name, join, vector_rsa_key()) as store:
            keys.add(store.request_key)
            assert store.request_key not in repr(store)
        for path in (tmp_path / name).iterdir():
            content = path.read_bytes()
            assert join.token not in content
            assert join.token.hex().encode() not in content
    assert len(keys) == 2


def test_requests_prove_possession_and_name_nobody() -> None:
    key = generate_client_key()
    request = certificate_request(key)
    assert client_key_of_request(request) == key.public_key()
    assert x509.load_der_x509_csr(request).subject == x509.Name([])


def test_what_needs_enrolment_says_so(tmp_path: Path) -> None:
    with create(tmp_path / "store") as store:
        reads: list[Callable[[], object]] = [
            lambda: store.chain_pem,
            lambda: store.root,
            lambda: store.root_pem,
            lambda: store.not_after,
            lambda: store.replace_chain(client_certificate().chain, now=NOW),
        ]
        for read in reads:
            with pytest.raises(StateConflict, match="not enrolled yet"):
                read()


def test_one_opener_at_a_time(enrolled: Path) -> None:
    with KeyStore.open(enrolled) as store:
        with pytest.raises(KeyStoreLocked, match="in use"):
            KeyStore.open(enrolled)
        store.close()
        store.close()
        with KeyStore.open(enrolled):
            pass


def test_many_stores_in_one_process(tmp_path: Path) -> None:
    stores = [create(tmp_path / str(i)) for i in range(60)]
    with pytest.raises(KeyStoreLocked):
        KeyStore.open(tmp_path / "7")
    for store in stores:
        store.close()


def test_creating_is_exclusive_too(tmp_path: Path) -> None:
    with create(tmp_path / "store"), pytest.raises(KeyStoreLocked):
        create(tmp_path / "store")


def test_another_process_is_locked_out_until_it_dies(enrolled: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from boltz_client.keystore import KeyStore\n"
        f"store = KeyStore.open(Path({str(enrolled)!r})); print('open', flush=True)\n"
        "sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
        with pytest.raises(KeyStoreLocked):
            KeyStore.open(enrolled)
        process.send_signal(signal.SIGKILL)
        process.wait()
    with KeyStore.open(enrolled):
        pass


def test_a_failed_open_gives_the_lock_back(enrolled: Path) -> None:
    content = (enrolled / "mesh.json").read_bytes()
    (enrolled / "mesh.json").write_bytes(b"{}")
    with pytest.raises(ConfigurationError):
        KeyStore.open(enrolled)
    (enrolled / "mesh.json").write_bytes(content)
    with KeyStore.open(enrolled):
        pass


@pytest.mark.parametrize("name", [".", "key.pem", "mesh.json", "chain.pem", "root.pem"])
def test_open_permissions_are_refused_with_advice(enrolled: Path, name: str) -> None:
    path = enrolled / name
    path.chmod(path.stat().st_mode | 0o004)
    with pytest.raises(ConfigurationError, match=r"others can reach it.*chmod [67]00"):
        KeyStore.open(enrolled)


def test_files_of_another_user_are_refused(enrolled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: mine + 1)
    with pytest.raises(ConfigurationError, match=f"belongs to user {mine}"):
        KeyStore.open(enrolled)


def test_a_folder_open_to_others_is_not_used(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    folder.mkdir(mode=0o755)
    with pytest.raises(ConfigurationError, match="chmod 700"):
        create(folder)
    folder.chmod(0o700)
    create(folder).close()


def test_places_that_are_no_store(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        KeyStore.open(tmp_path / "absent")
    empty = tmp_path / "empty"
    empty.mkdir(mode=0o700)
    with pytest.raises(ConfigurationError, match="is not a key store"):
        KeyStore.open(empty)
    assert list(empty.iterdir()) == []
    file = tmp_path / "file"
    file.write_bytes(b"")
    with pytest.raises(ConfigurationError, match="cannot be made"):
        create(file / "store")
    (empty / "lock").mkdir()
    with pytest.raises(ConfigurationError, match="cannot be made"):
        create(empty)


def test_locks_that_the_file_system_refuses(
    enrolled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(_: int, __: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(ConfigurationError, match="No locks available"):
        KeyStore.open(enrolled)


def test_a_half_written_store_is_refused_and_can_be_begun_again(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    create(folder).close()
    (folder / "mesh.json").unlink()
    (folder / "mesh.json.tmp").write_bytes(b"{")
    assert not KeyStore.exists(folder)
    with pytest.raises(ConfigurationError, match="half-written"):
        KeyStore.open(folder)
    create(folder).close()
    with KeyStore.open(folder) as store:
        assert store.client_id is None
    assert set(modes(folder)) == {"lock", "key.pem", "mesh.json"}


def test_nothing_is_overwritten(enrolled: Path) -> None:
    with pytest.raises(ConfigurationError, match="not empty"):
        create(enrolled)
    (enrolled / "mesh.json").unlink()
    with pytest.raises(ConfigurationError, match="not empty"):
        create(enrolled)


def test_an_enrolment_cut_off_anywhere_can_be_repeated(tmp_path: Path) -> None:
    # As many of the three writes as the crash let through; mesh.json is the last.
    for written in range(3):
        folder = tmp_path / str(written)
        create(folder).close()
        contents = {"root.pem": authority().root_pem, "chain.pem": client_certificate().chain_pem}
        for name, content in list(contents.items())[:written]:
            (folder / name).write_bytes(content)
        with KeyStore.open(folder) as store:
            assert store.client_id is None
            enrol(store)
        with KeyStore.open(folder) as store:
            assert store.client_id == CLIENT


def test_temporary_files_are_removed(enrolled: Path) -> None:
    (enrolled / "key.pem.tmp").write_bytes(b"half a key")
    (enrolled / "ledger.tmp").write_bytes(b"somebody else's")
    KeyStore.open(enrolled).close()
    assert not (enrolled / "key.pem.tmp").exists()
    assert (enrolled / "ledger.tmp").exists()


@pytest.mark.parametrize("name", ["key.pem", "chain.pem", "root.pem", "mesh.json"])
@pytest.mark.parametrize("damage", ["gone", "empty", "cut", "garbage", "huge"])
def test_damage_is_refused(enrolled: Path, name: str, damage: str) -> None:
    path = enrolled / name
    content = path.read_bytes()
    match damage:
        case "gone":
            path.unlink()
        case "empty":
            path.write_bytes(b"")
        case "cut":
            path.write_bytes(content[: len(content) // 2])
        case "garbage":
            path.write_bytes(b"\xff\x00" * 100)
        case "huge":
            path.write_bytes(b"\n" * (1 << 16) + content)
    if damage == "huge" and name in {"mesh.json", "key.pem"}:
        KeyStore.open(enrolled).close()
        return
    with pytest.raises(ConfigurationError, match="Delete the folder"):
        KeyStore.open(enrolled)


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"mesh": "No Name"},
        {"mesh": 7},
        {"enroll_address": "host"},
        {"mesh_address": ""},
        {"mesh_address": None},
        {"authority_fingerprint": "99"},
        {"request_key": "99"},
        {"request_key": None},
        {"client_id": "x"},
        {"client_id": 7},
        {"more": "x"},
        {"mesh": "other"},
        {"client_id": str(OTHER_CLIENT)},
        {"authority_fingerprint": "99" * 32},
    ],
)
def test_a_wrong_mesh_file_is_refused(enrolled: Path, change: dict[str, Any]) -> None:
    path = enrolled / "mesh.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ConfigurationError):
        KeyStore.open(enrolled)


def test_a_mesh_file_that_is_no_object_or_lacks_a_field(enrolled: Path) -> None:
    path = enrolled / "mesh.json"
    fields = json.loads(path.read_text())
    del fields["request_key"]
    contents: list[object] = [[], fields]
    for content in contents:
        path.write_text(json.dumps(content))
        with pytest.raises(ConfigurationError):
            KeyStore.open(enrolled)


def test_files_that_do_not_go_together_are_refused(enrolled: Path) -> None:
    foreign = foreign_authority().issue_client(
        certificate_request(vector_rsa_key()), CLIENT, now=NOW
    )
    for name, content in (
        ("key.pem", key_pem(other_rsa_key())),
        ("key.pem", key_pem(short_rsa_key())),
        ("key.pem", key_pem(Ed25519PrivateKey.generate())),
        ("root.pem", foreign_authority().root_pem),
        ("root.pem", authority().root_pem * 2),
        ("chain.pem", foreign.chain_pem),
        ("chain.pem", client_certificate().chain_pem * 5),
        ("chain.pem", authority().issue_operator("ann", now=NOW).issued.chain_pem),
    ):
        path = enrolled / name
        before = path.read_bytes()
        path.write_bytes(content)
        with pytest.raises(ConfigurationError):
            KeyStore.open(enrolled)
        path.write_bytes(before)
    KeyStore.open(enrolled).close()


def test_a_wrong_answer_to_an_enrolment_changes_nothing(tmp_path: Path) -> None:
    root = authority().root
    request = certificate_request(vector_rsa_key())
    foreign = foreign_authority().issue_client(request, CLIENT, now=NOW)
    other_key = authority().issue_client(certificate_request(other_rsa_key()), CLIENT, now=NOW)
    with create(tmp_path / "store") as store:
        for client_id, chain, its_root, now in (
            (CLIENT, foreign.chain, foreign_authority().root, NOW),
            (CLIENT, foreign.chain, root, NOW),
            (CLIENT, other_key.chain, root, NOW),
            (OTHER_CLIENT, client_certificate().chain, root, NOW),
            (CLIENT, client_certificate().chain, root, NOW + timedelta(days=91)),
        ):
            with pytest.raises(CertificateInvalid):
                store.complete_enrolment(client_id, chain, its_root, now=now)
        assert store.client_id is None
    assert set(modes(tmp_path / "store")) == {"lock", "key.pem", "mesh.json"}


def test_no_second_client_in_one_store(enrolled: Path) -> None:
    other = authority().issue_client(certificate_request(vector_rsa_key()), OTHER_CLIENT, now=NOW)
    with KeyStore.open(enrolled) as store:
        with pytest.raises(StateConflict, match="enrolled as"):
            store.complete_enrolment(OTHER_CLIENT, other.chain, authority().root, now=NOW)
        with pytest.raises(CertificateInvalid, match="names the client"):
            store.replace_chain(other.chain, now=NOW)


def test_renewal_and_an_expired_store_that_still_opens(enrolled: Path) -> None:
    later = NOW + timedelta(days=100)
    renewed = authority().issue_client(certificate_request(vector_rsa_key()), CLIENT, now=later)
    with KeyStore.open(enrolled) as store:
        assert store.not_after < later
        with pytest.raises(CertificateInvalid, match="expired"):
            store.replace_chain(client_certificate().chain, now=later)
        store.replace_chain(renewed.chain, now=later)
    with KeyStore.open(enrolled) as store:
        assert store.chain == renewed.chain
    assert load_pem_chain((enrolled / "chain.pem").read_bytes()) == renewed.chain
    assert pem_chain(renewed.chain) == renewed.chain_pem


def test_new_addresses(enrolled: Path) -> None:
    with KeyStore.open(enrolled) as store:
        store.move(enroll_address="new:1", mesh_address="new:2")
        with pytest.raises(MalformedMessage):
            store.move(enroll_address="new:1", mesh_address="new")
    with KeyStore.open(enrolled) as store:
        assert store.identity.enroll_address == "new:1"
        assert store.identity.mesh_address == "new:2"
        assert store.client_id == CLIENT


def test_a_join_string_of_another_mesh_is_refused(enrolled: Path) -> None:
    with KeyStore.open(enrolled) as store:
        store.check_join(join_string())
        with pytest.raises(StateConflict, match="another"):
            store.check_join(replace(join_string(), authority_fingerprint="99" * 32))


def test_short_keys_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MalformedMessage, match="2048"):
        KeyStore.create(tmp_path / "store", join_string(), short_rsa_key())
    assert not (tmp_path / "store").exists()


def test_the_lock_is_an_ordinary_flock(enrolled: Path) -> None:
    descriptor = os.open(enrolled / "lock", os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(KeyStoreLocked):
        KeyStore.open(enrolled)
    os.close(descriptor)
