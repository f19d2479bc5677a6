"""Generate the Python code that lies beside each ``.proto`` file under ``protos/midcourse``.

For every ``x.proto`` this writes ``x_pb2.py`` and ``x_pb2.pyi``, and for those that declare a
service also ``x_pb2_grpc.py`` and ``x_pb2_grpc.pyi``. The stubs come from mypy-protobuf, whose
service stubs type both ``grpc.Channel`` and ``grpc.aio.Channel``. Generated files whose ``.proto``
is gone are removed. Every folder gets an ``__init__.py`` if it has none, so that ``midcourse`` is a
regular, typed package.

Run as ``python tools/protos.py`` to write, or with ``--check`` to write nothing and exit 1 naming
each file that is not what the ``.proto`` files say.
"""

from __future__ import annotations

import argparse
import importlib.resources
import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import google.rpc
from google.protobuf.descriptor_pb2 import FileDescriptorSet

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
PACKAGE = PROTOS / "midcourse"

GENERATED_SUFFIXES = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py", "_pb2_grpc.pyi")

INIT_TEXT = '"""Code generated from the .proto files in this folder."""\n'


class ProtocError(Exception):
    """``protoc`` refused the sources; the message is what it printed."""


def sources() -> list[str]:
    """Return every ``.proto`` file of the package, relative to ``protos/``, sorted."""
    return sorted(path.relative_to(PROTOS).as_posix() for path in PACKAGE.rglob("*.proto"))


def run_protoc(arguments: list[str]) -> None:
    """Run the ``protoc`` that grpcio-tools ships.

    Raises:
        ProtocError: If it exits with anything but 0.
    """
    # google/protobuf/* comes with grpcio-tools, google/rpc/* and google/api/* with
    # googleapis-common-protos, which installs its .proto files beside google.rpc.
    well_known = importlib.resources.files("grpc_tools") / "_proto"
    googleapis = Path(google.rpc.__path__[0]).parent.parent
    command = [sys.executable, "-m", "grpc_tools.protoc"]
    command += [f"-I{include}" for include in (PROTOS, well_known, googleapis)]
    # The plugins are scripts of this interpreter's environment, which need not be on PATH.
    scripts = sysconfig.get_path("scripts")
    environment = os.environ | {"PATH": os.pathsep.join((scripts, os.environ.get("PATH", "")))}
    done = subprocess.run(  # noqa: S603 - our own interpreter with arguments made here
        [*command, *arguments], capture_output=True, text=True, env=environment, check=False
    )
    if done.returncode != 0:
        raise ProtocError(done.stderr.strip() or f"protoc exited with {done.returncode}")


def with_services(protos: list[str]) -> list[str]:
    """Return those of ``protos`` that declare a service, as ``protoc`` itself parses them."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "descriptors.binpb")
        run_protoc([f"--descriptor_set_out={output}", *protos])
        descriptors = FileDescriptorSet.FromString(output.read_bytes())
    return [file.name for file in descriptors.file if file.service]


def generate(protos: list[str]) -> dict[str, bytes]:
    """Generate all code for ``protos``; return it by its path relative to ``protos/``."""
    with tempfile.TemporaryDirectory() as folder:
        run_protoc([f"--python_out={folder}", f"--mypy_out=quiet:{folder}", *protos])
        services = with_services(protos)
        if services:
            run_protoc(
                [f"--grpc_python_out={folder}", f"--mypy_grpc_out=quiet:{folder}", *services]
            )
        return {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(Path(folder).rglob("*"))
            if path.is_file()
        }


def package_files(protos: list[str]) -> dict[str, bytes]:
    """Return the hand-editable files each folder needs to be part of a typed package."""
    folders = {PACKAGE} | {
        folder
        for proto in protos
        for folder in (PROTOS / proto).parents
        if folder.is_relative_to(PACKAGE)
    }
    files = {
        (folder / "__init__.py").relative_to(PROTOS).as_posix(): INIT_TEXT.encode()
        for folder in sorted(folders)
    }
    files["midcourse/py.typed"] = b""
    return files


def stale(expected: dict[str, bytes]) -> list[str]:
    """Return generated files on disk that no ``.proto`` accounts for."""
    return sorted(
        path.relative_to(PROTOS).as_posix()
        for path in PACKAGE.rglob("*_pb2*")
        if path.name.endswith(GENERATED_SUFFIXES)
        and path.relative_to(PROTOS).as_posix() not in expected
    )


def changed(expected: dict[str, bytes], editable: dict[str, bytes]) -> dict[str, bytes]:
    """Return what is to be written: generated code that differs, package files that are missing."""
    differing = {
        name: content
        for name, content in expected.items()
        if not (PROTOS / name).is_file() or (PROTOS / name).read_bytes() != content
    }
    missing = {name: content for name, content in editable.items() if not (PROTOS / name).is_file()}
    return differing | missing


def main() -> int:
    """Write or check the generated code; return the exit status."""
    parser = argparse.ArgumentParser(description="Generate Python code from protos/midcourse.")
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 if anything is out of date"
    )
    check = parser.parse_args().check

    protos = sources()
    if not protos:
        print(f"no .proto file under {PACKAGE}", file=sys.stderr)
        return 1
    try:
        expected = generate(protos)
    except ProtocError as error:
        print(error, file=sys.stderr)
        return 1
    to_write = changed(expected, package_files(protos))
    to_remove = stale(expected)

    if check:
        for name in sorted(to_write):
            print(f"protos/{name}: not what its .proto says", file=sys.stderr)
        for name in to_remove:
            print(f"protos/{name}: has no .proto any more", file=sys.stderr)
        if to_write or to_remove:
            print("generated code is out of date: run `make protos`", file=sys.stderr)
            return 1
        print(f"generated code is current ({len(protos)} .proto files)")
        return 0

    for name, content in to_write.items():
        target = PROTOS / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    for name in to_remove:
        (PROTOS / name).unlink()
    print(f"{len(protos)} .proto files: {len(to_write)} written, {len(to_remove)} removed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
