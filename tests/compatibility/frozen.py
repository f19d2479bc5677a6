"""What was frozen of a version of the wire: its messages, and what its processes said.

The messages are made from the frozen descriptors alone, in a pool of their own: nothing of the
present generated code takes part.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import Message

FOLDER = Path(__file__).parent / "v1"
IMAGE = FOLDER / "image.binpb"
SESSION = FOLDER / "session.jsonl"
LINK = FOLDER / "link.jsonl"
CHECKPOINT = FOLDER / "checkpoint.json"
DATABASE = FOLDER / "control.sql"

NEWS = 1999
"""Number of the field that every message of a newer version has, and of its newest enum value."""


@dataclass(frozen=True, slots=True)
class Said:
    """Something that was said.

    Attributes:
        by: Who: `agent`, `server`, `trainer`, or `caller METHOD`.
        raw: The message.
    """

    by: str
    raw: bytes


def read(path: Path) -> list[Said]:
    """A recorded conversation."""
    lines = map(json.loads, path.read_text("utf-8").splitlines())
    return [Said(line["by"], base64.b64decode(line["raw"])) for line in lines]


def write(path: Path, conversation: Sequence[Said]) -> None:
    """Records a conversation."""
    lines = [
        json.dumps({"by": each.by, "raw": base64.b64encode(each.raw).decode("ascii")})
        for each in conversation
    ]
    path.write_text("".join(f"{line}\n" for line in lines), "utf-8")


class Wire:
    """The messages of one version, by full name below `midcourse`: `agent.v1.Hello`."""

    def __init__(self, files: descriptor_pb2.FileDescriptorSet) -> None:
        pool = descriptor_pool.DescriptorPool()
        for file in files.file:
            pool.Add(file)
        self._pool = pool

    def message(self, name: str) -> type[Message]:
        """The class of a message."""
        found = self._pool.FindMessageTypeByName(f"midcourse.{name}")
        made: type[Message] = message_factory.GetMessageClass(found)
        return made

    def parse(self, name: str, raw: bytes) -> Any:
        """A message from bytes, as this version understands it."""
        return self.message(name).FromString(raw)

    def method(self, path: str) -> tuple[Any, Any]:
        """Classes of what a method takes and gives: `control.v1.ControlPlaneService/GetJob`."""
        service, _, name = path.partition("/")
        found = self._pool.FindServiceByName(f"midcourse.{service}").FindMethodByName(name)
        return (
            message_factory.GetMessageClass(found.input_type),
            message_factory.GetMessageClass(found.output_type),
        )


def _files() -> descriptor_pb2.FileDescriptorSet:
    return descriptor_pb2.FileDescriptorSet.FromString(IMAGE.read_bytes())


@cache
def old() -> Wire:
    """The frozen version."""
    return Wire(_files())


@cache
def newer() -> Wire:
    """A version that is newer than any: each message has a field more, each enum a value more."""
    files = _files()
    for file in files.file:
        if not file.package.startswith("midcourse."):
            continue
        for enum in file.enum_type:
            enum.value.add(name=f"{enum.name.upper()}_NEWS", number=NEWS)
        for message in _messages(file.message_type):
            message.field.add(
                name="news",
                number=NEWS,
                type=descriptor_pb2.FieldDescriptorProto.TYPE_STRING,
                label=descriptor_pb2.FieldDescriptorProto.LABEL_OPTIONAL,
            )
    return Wire(files)


def _messages(
    of: Sequence[descriptor_pb2.DescriptorProto],
) -> Iterator[descriptor_pb2.DescriptorProto]:
    for each in of:
        if not each.options.map_entry:
            yield each
            yield from _messages(each.nested_type)


def with_news(message: Any) -> None:
    """Fills in the new field of a message of a newer version, and of all within it."""
    if message.DESCRIPTOR.full_name.startswith("midcourse."):
        message.news = "of a newer version"
    for field, value in message.ListFields():
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            continue
        for each in value if field.is_repeated else [value]:
            with_news(each)
