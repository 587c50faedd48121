"""The contract's text: everything is commented, and fields say who sets them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2

from tests.support.repository import PROTO

#: Field numbers in google/protobuf/descriptor.proto, by which SourceCodeInfo names a place.
_FILE_MESSAGE, _FILE_ENUM, _FILE_SERVICE = 4, 5, 6
_MESSAGE_FIELD, _MESSAGE_NESTED, _MESSAGE_ENUM, _MESSAGE_ONEOF = 2, 3, 4, 8
_ENUM_VALUE, _SERVICE_METHOD = 2, 2


@dataclass(frozen=True, slots=True)
class Element:
    """A named thing in a proto file, with the comment that leads it."""

    kind: str
    name: str
    comment: str


def _enum(
    enum: descriptor_pb2.EnumDescriptorProto, prefix: str, path: tuple[int, ...]
) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    yield "enum", prefix + enum.name, path
    for index, value in enumerate(enum.value):
        yield "value", f"{prefix}{enum.name}.{value.name}", (*path, _ENUM_VALUE, index)


def _message(
    message: descriptor_pb2.DescriptorProto, prefix: str, path: tuple[int, ...]
) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    if message.options.map_entry:
        return
    name = prefix + message.name
    yield "message", name, path
    for index, field in enumerate(message.field):
        yield "field", f"{name}.{field.name}", (*path, _MESSAGE_FIELD, index)
    synthetic = {field.oneof_index for field in message.field if field.proto3_optional}
    for index, oneof in enumerate(message.oneof_decl):
        if index not in synthetic:
            yield "oneof", f"{name}.{oneof.name}", (*path, _MESSAGE_ONEOF, index)
    for index, nested in enumerate(message.nested_type):
        yield from _message(nested, name + ".", (*path, _MESSAGE_NESTED, index))
    for index, enum in enumerate(message.enum_type):
        yield from _enum(enum, name + ".", (*path, _MESSAGE_ENUM, index))


def _named(
    file: descriptor_pb2.FileDescriptorProto,
) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    for index, message in enumerate(file.message_type):
        yield from _message(message, "", (_FILE_MESSAGE, index))
    for index, enum in enumerate(file.enum_type):
        yield from _enum(enum, "", (_FILE_ENUM, index))
    for index, service in enumerate(file.service):
        path = (_FILE_SERVICE, index)
        yield "service", service.name, path
        for number, method in enumerate(service.method):
            yield "rpc", f"{service.name}.{method.name}", (*path, _SERVICE_METHOD, number)


def elements(file: descriptor_pb2.FileDescriptorProto) -> list[Element]:
    comments = {
        tuple(place.path): place.leading_comments.strip()
        for place in file.source_code_info.location
    }
    return [Element(kind, name, comments.get(path, "")) for kind, name, path in _named(file)]


def compiled(proto_root: Path, out: Path) -> list[descriptor_pb2.FileDescriptorProto]:
    target = out / "contract.binpb"
    sources = [str(path) for path in sorted((proto_root / "boltz_mesh" / "v1").glob("*.proto"))]
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{proto_root}"]
    options = ["--include_source_info", f"--descriptor_set_out={target}"]
    subprocess.run([*command, *options, *sources], check=True)
    return list(descriptor_pb2.FileDescriptorSet.FromString(target.read_bytes()).file)


@pytest.fixture(scope="module")
def contract(tmp_path_factory: pytest.TempPathFactory) -> list[Element]:
    files = compiled(PROTO, tmp_path_factory.mktemp("contract"))
    return [element for file in files for element in elements(file)]


def test_the_walk_sees_every_kind(contract: list[Element]) -> None:
    kinds = {element.kind for element in contract}
    assert {"message", "field", "enum", "value", "service", "rpc"} <= kinds
    assert {"Registry", "ModelStore", "Aggregator"} <= {
        element.name for element in contract if element.kind == "service"
    }


def test_everything_is_commented(contract: list[Element]) -> None:
    bare = [f"{element.kind} {element.name}" for element in contract if not element.comment]
    assert not bare, "\n".join(bare)


def test_comments_are_sentences(contract: list[Element]) -> None:
    cut = [
        f"{element.kind} {element.name}: {element.comment!r}"
        for element in contract
        if not element.comment.rstrip().endswith((".", ":", ";"))
        and not element.comment.rstrip().endswith(("`", ")"))
    ]
    assert not cut, "\n".join(cut)


def test_every_field_says_who_sets_it(contract: list[Element]) -> None:
    silent = [
        element.name
        for element in contract
        if element.kind == "field" and "set by" not in element.comment.lower()
    ]
    assert not silent, "\n".join(silent)


def test_an_uncommented_element_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "boltz_mesh" / "v1"
    folder.mkdir(parents=True)
    (folder / "bare.proto").write_text(
        'syntax = "proto3";\npackage boltz_mesh.v1;\n// Said.\nmessage Said {\n  string un = 1;\n'
        "  oneof kind {\n    // Said.\n    string a = 2;\n  }\n}\nenum Bare {\n  BARE_X = 0;\n}\n"
    )
    found = [element for file in compiled(tmp_path, tmp_path) for element in elements(file)]
    bare = [element.name for element in found if not element.comment]
    assert bare == ["Said.un", "Said.kind", "Bare", "Bare.BARE_X"]
