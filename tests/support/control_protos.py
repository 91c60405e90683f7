"""Makes Python of the `.proto` files: `make protos`, or with `--check` in `make check`.

Only messages and descriptors are generated; servers and clients read the services from the descriptors.
"""

from __future__ import annotations

import sys
import tempfile
from importlib import resources
from pathlib import Path

PROTOS = Path(__file__).resolve().parents[2] / "runtime" / "control" / "protos"
PACKAGE = "wardround/runtime/control/protos"
"""Path of the files as they import each other."""


def generated(protos: Path = PROTOS) -> dict[str, bytes]:
    """Name of each generated file → its content, from the `.proto` files of a folder.

    Raises:
        ModuleNotFoundError: grpcio-tools (extra `dev`) is not installed.
        RuntimeError: A `.proto` file has a fault; protoc has said which.
    """
    from grpc_tools import protoc

    with tempfile.TemporaryDirectory() as temporary:
        source, target = Path(temporary) / "in", Path(temporary) / "out"
        inner = source / PACKAGE
        inner.mkdir(parents=True)
        target.mkdir()
        for path in sorted(protos.glob("*.proto")):
            (inner / path.name).write_bytes(path.read_bytes())
        include = resources.files("grpc_tools") / "_proto"
        arguments = ["protoc", f"-I{source}", f"-I{include}", f"--python_out={target}", f"--pyi_out={target}"]
        if protoc.main([*arguments, *(f"{PACKAGE}/{path.name}" for path in sorted(inner.glob("*.proto")))]):
            raise RuntimeError("protoc refuses the .proto files")
        return {path.name: path.read_bytes() for path in sorted((target / PACKAGE).iterdir())}


def stale(protos: Path = PROTOS) -> list[str]:
    """Generated files that are not what a folder's `.proto` files give: changed, missing or left over."""
    wanted = generated(protos)
    there = {path.name: path.read_bytes() for path in protos.glob("*_pb2.py*")}
    return sorted(name for name in wanted.keys() | there.keys() if wanted.get(name) != there.get(name))


def main(arguments: list[str]) -> int:
    """Write the generated files, or with `--check` only compare them; 1 where they differ."""
    if arguments == ["--check"]:
        differing = stale()
        for name in differing:
            sys.stderr.write(f"{name} is not what the .proto files give: run `make protos`\n")
        return bool(differing)
    for name, content in generated().items():
        (PROTOS / name).write_bytes(content)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
