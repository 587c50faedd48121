"""What a server serves, asked from it by reflection; and calls of any method with raw bytes."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from boltz_protocol.status import from_rpc_error

_PROTO = Path(__file__).resolve().parents[2] / "proto" / "boltz_mesh" / "v1"


@dataclass(frozen=True, slots=True)
class Method:
    """One served method."""

    service: str
    name: str
    streams_in: bool
    streams_out: bool

    @property
    def path(self) -> str:
        return f"/{self.service}/{self.name}"


@dataclass(frozen=True, slots=True)
class Answer:
    """How a call went: its code, and our reason where the error was one of ours."""

    code: grpc.StatusCode
    reason: str = ""

    @property
    def passed_the_guard(self) -> bool:
        """Whether identity and role were right, whatever the method then said."""
        return self.code not in (
            grpc.StatusCode.UNAUTHENTICATED,
            grpc.StatusCode.PERMISSION_DENIED,
            grpc.StatusCode.UNIMPLEMENTED,
            grpc.StatusCode.UNAVAILABLE,
            grpc.StatusCode.UNKNOWN,
        )


async def served_methods(channel: grpc.aio.Channel) -> list[Method]:
    """Every method that the server's own descriptors list."""
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)

    async def ask(**fields: str) -> Any:
        async def requests() -> AsyncIterator[Any]:
            yield reflection_pb2.ServerReflectionRequest(**fields)

        async for answer in stub.ServerReflectionInfo(requests()):
            return answer
        raise AssertionError("reflection gave no answer")

    listed = (await ask(list_services="")).list_services_response.service
    methods: list[Method] = []
    for service in [entry.name for entry in listed]:
        answer = await ask(file_containing_symbol=service)
        for content in answer.file_descriptor_response.file_descriptor_proto:
            file = FileDescriptorProto.FromString(content)
            for described in file.service:
                if f"{file.package}.{described.name}" == service:
                    methods.extend(
                        Method(service, rpc.name, rpc.client_streaming, rpc.server_streaming)
                        for rpc in described.method
                    )
    return methods


async def call(channel: grpc.aio.Channel, method: Method, request: bytes = b"") -> Answer:
    """Send one message of raw bytes; wait for the first answer or the refusal."""
    kind = f"{_kind(method.streams_in)}_{_kind(method.streams_out)}"
    multicallable = getattr(channel, kind)(
        method.path, request_serializer=bytes, response_deserializer=bytes
    )

    async def requests() -> AsyncIterator[bytes]:
        yield request

    try:
        async with asyncio.timeout(20):
            started = multicallable(requests() if method.streams_in else request)
            if method.streams_out:
                async for _ in started:
                    break
                started.cancel()
            else:
                await started
    except grpc.aio.AioRpcError as error:
        return Answer(error.code(), from_rpc_error(error).reason)
    return Answer(grpc.StatusCode.OK)


def _kind(streams: bool) -> str:
    return "stream" if streams else "unary"


def documented_roles() -> dict[str, frozenset[str]]:
    """Method path -> roles that the contract's comments name; none for Enroll."""
    roles: dict[str, frozenset[str]] = {}
    for file in sorted(_PROTO.glob("*.proto")):
        service, comment = "", ""
        for line in file.read_text().splitlines():
            text = line.strip()
            if found := re.match(r"service (\w+)", text):
                service = found.group(1)
            if text.startswith("//"):
                comment += f" {text.removeprefix('//').strip()}"
                continue
            if found := re.match(r"rpc (\w+)\(", text):
                named = re.search(r"Role: ([^.]*)\.", comment)
                words = re.sub(r"\([^)]*\)", "", named.group(1)) if named else ""
                path = f"/boltz_mesh.v1.{service}/{found.group(1)}"
                roles[path] = frozenset(word.strip() for word in words.split(",") if word.strip())
            comment = ""
    return roles
