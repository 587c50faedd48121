"""Generate the Python stubs of `proto/` into `boltz_protocol.v1`, or check the committed ones.

`protoc` names Python modules after the folders of the proto files (`boltz_mesh.v1`). That name
belongs to the server's distribution, so the stubs move to `boltz_protocol.v1` and their imports
are rewritten. Only Python names change: in the descriptor pool, in reflection and on the wire the
files stay `boltz_mesh/v1/*.proto` and the package stays `boltz_mesh.v1`.

    python tools/generate_stubs.py            write the stubs
    python tools/generate_stubs.py --check    exit 1 and print a diff when the committed ones differ

The output depends on the proto files and on the versions of grpcio-tools and mypy-protobuf, which
pyproject.toml pins, and on nothing else.
"""

from __future__ import annotations

import argparse
import difflib
import importlib.metadata
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
PROTO_ROOT: Final = ROOT / "proto"
STUBS: Final = ROOT / "client_sdk" / "src" / "boltz_protocol" / "v1"

#: Where the proto files and their Python modules live, as folders and as dotted names.
PROTO_PACKAGE: Final = "boltz_mesh.v1"
PYTHON_PACKAGE: Final = "boltz_protocol.v1"

#: Distributions whose version shapes the output; a `--check` that fails names them.
GENERATORS: Final = ("grpcio-tools", "mypy-protobuf")

_PROTO_MODULE: Final = re.escape(PROTO_PACKAGE)
_PROTO_FOLDER: Final = re.escape(PROTO_PACKAGE.replace(".", "/"))
#: Each place where generated text names a *Python module*; descriptors, which hold the same
#: words, match none of them.
_REWRITES: Final = (
    (re.compile(rf"^(from ){_PROTO_MODULE}( import )", re.MULTILINE), rf"\1{PYTHON_PACKAGE}\2"),
    (re.compile(rf"^(import ){_PROTO_MODULE}(\.)", re.MULTILINE), rf"\1{PYTHON_PACKAGE}\2"),
    (
        re.compile(rf"(BuildTopDescriptorsAndMessages\(DESCRIPTOR, '){_PROTO_MODULE}(\.\w+_pb2')"),
        rf"\1{PYTHON_PACKAGE}\2",
    ),
    (
        re.compile(rf"(the generated code in ){_PROTO_FOLDER}(/\w+_pb2_grpc\.py)"),
        rf"\1{PYTHON_PACKAGE.replace('.', '/')}\2",
    ),
)
_DEFINES_SERVICE: Final = re.compile(r"^class \w+Stub", re.MULTILINE)


class StubsError(Exception):
    """The proto files do not compile, or generated text looks unlike what this tool can move."""


def moved(text: str) -> str:
    """Rewrite the module names in one generated file from PROTO_PACKAGE to PYTHON_PACKAGE.

    Raises: StubsError where an import of PROTO_PACKAGE is left over, so that a new generator
    with a new kind of import cannot slip through.
    """
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    left = re.search(rf"^\s*(from|import) {_PROTO_MODULE}\b.*$", text, re.MULTILINE)
    if left is not None:
        raise StubsError(f"an import was not rewritten: {left.group(0).strip()}")
    return text


def generate(proto_root: Path = PROTO_ROOT) -> dict[str, str]:
    """Compile every proto file under `proto_root`; return file name -> text, sorted by name.

    Proto files without a service get no `_grpc` modules. Raises: StubsError with protoc's words.
    """
    package = proto_root / PROTO_PACKAGE.replace(".", "/")
    sources = sorted(path.relative_to(proto_root).as_posix() for path in package.glob("*.proto"))
    if not sources:
        raise StubsError(f"no proto files in {package}")
    plugins = Path(sys.executable).parent
    with tempfile.TemporaryDirectory(prefix="boltz-stubs-") as folder:
        # A process of its own, with its working directory in proto/: protoc's include path, and
        # so its output, then holds no path of this machine.
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "grpc_tools.protoc",
                "-I.",
                f"--plugin=protoc-gen-mypy={plugins / 'protoc-gen-mypy'}",
                f"--plugin=protoc-gen-mypy_grpc={plugins / 'protoc-gen-mypy_grpc'}",
                f"--python_out={folder}",
                f"--grpc_python_out={folder}",
                f"--mypy_out=quiet:{folder}",
                f"--mypy_grpc_out=quiet:{folder}",
                *sources,
            ],
            cwd=proto_root,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise StubsError(done.stderr.strip() or f"protoc ended with {done.returncode}")
        out = Path(folder) / PROTO_PACKAGE.replace(".", "/")
        texts = {path.name: path.read_text("utf-8") for path in sorted(out.iterdir())}
    without_service = {
        name.removesuffix(".py")
        for name, text in texts.items()
        if name.endswith("_pb2_grpc.py") and _DEFINES_SERVICE.search(text) is None
    }
    return {
        name: moved(text)
        for name, text in texts.items()
        if name.partition(".")[0] not in without_service
    }


def committed(stubs: Path = STUBS) -> dict[str, str]:
    """The generated files that are there now: file name -> text."""
    return {path.name: path.read_text("utf-8") for path in sorted(stubs.glob("*_pb2*.py*"))}


def differences(old: Mapping[str, str], new: Mapping[str, str]) -> str:
    """A unified diff from `old` to `new`, empty when they are equal; a missing file is empty."""
    lines: list[str] = []
    for name in sorted({*old, *new}):
        lines += difflib.unified_diff(
            old.get(name, "").splitlines(keepends=True),
            new.get(name, "").splitlines(keepends=True),
            fromfile=f"committed/{name}" if name in old else "/dev/null",
            tofile=f"generated/{name}" if name in new else "/dev/null",
        )
    return "".join(lines)


def write(texts: Mapping[str, str], stubs: Path = STUBS) -> None:
    """Put the stubs in place and remove generated files whose proto file is gone."""
    stubs.mkdir(parents=True, exist_ok=True)
    for name in committed(stubs).keys() - texts.keys():
        (stubs / name).unlink()
    for name, text in texts.items():
        (stubs / name).write_text(text, "utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code: 0 done or equal, 1 different, 2 does not compile."""
    parser = argparse.ArgumentParser(description="Generate or check the stubs in boltz_protocol.v1")
    parser.add_argument("--check", action="store_true", help="compare with the committed stubs")
    parser.add_argument("--proto", type=Path, default=PROTO_ROOT, help="folder of the proto files")
    parser.add_argument("--out", type=Path, default=STUBS, help="folder of the stubs")
    options = parser.parse_args(arguments)
    try:
        texts = generate(options.proto)
    except StubsError as error:
        print(error, file=sys.stderr)
        return 2
    if not options.check:
        write(texts, options.out)
        print(f"{len(texts)} files in {options.out}")
        return 0
    diff = differences(committed(options.out), texts)
    if not diff:
        print(f"stubs: {len(texts)} files are up to date")
        return 0
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in GENERATORS)
    sys.stdout.write(diff)
    print(f"the committed stubs differ (generated by {versions}): run `make stubs`")
    return 1


if __name__ == "__main__":
    sys.exit(main())
