"""Keeps what is generated from the protos true: the committed stubs, and `lock.json`, the memory of the contract.

The lock records every field number, enum value and method that was ever released. A number stays with its name and
type; a field or enum value that goes must leave its number and its name `reserved`, so that neither is ever reused.

    python protos/contract.py            regenerate the stubs, add what is new to the lock
    python protos/contract.py --check    change nothing; fail if anything is stale or breaks the lock
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorSet,
    MethodDescriptorProto,
)
from grpc_tools import protoc

ROOT = Path(__file__).parent
LOCK = ROOT / "lock.json"
RESERVED = "reserved"
MOST_RESERVED = 1000  # numbers of one `reserved` range: they are listed one by one

# Full name of a message, enum or service -> number (of a field or value) or name (of a method) -> what it is.
Contract = dict[str, dict[str, str]]


class ContractError(Exception):
    """The protos do not compile, or can't be locked."""


def compile_protos(root: Path, arguments: Sequence[str]) -> None:
    """Runs protoc over every proto below `root`. Raises ContractError; protoc has then said why on stderr."""
    common = Path(import_module("google.rpc.status_pb2").__file__ or "").parents[2]
    builtin = Path(protoc.__file__).parent / "_proto"
    files = sorted(str(path) for path in root.rglob("*.proto"))
    if protoc.main(["protoc", f"-I{root}", f"-I{common}", f"-I{builtin}", *arguments, *files]):
        raise ContractError(f"protoc refused the protos in {root}")


def write_stubs(out: Path) -> None:
    """Generates the stubs of all protos below `out`."""
    compile_protos(ROOT, [f"--{kind}_out={out}" for kind in ("python", "pyi", "grpc_python")])


def stale_stubs() -> list[str]:
    """What differs between the committed stubs and freshly generated ones."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        write_stubs(out)
        fresh = {path.relative_to(out): path.read_bytes() for path in out.rglob("*_pb2*")}
    stubs = [path for path in ROOT.rglob("*_pb2*") if path.suffix in {".py", ".pyi"}]
    committed = {path.relative_to(ROOT): path.read_bytes() for path in stubs}
    paths = sorted(fresh.keys() | committed.keys())
    return [f"{path}: not what the protos generate" for path in paths if fresh.get(path) != committed.get(path)]


def read_contract(root: Path) -> Contract:
    """The contract of the protos below `root`."""
    with tempfile.TemporaryDirectory() as folder:
        descriptors = Path(folder) / "descriptors"
        compile_protos(root, [f"--descriptor_set_out={descriptors}"])
        files = FileDescriptorSet.FromString(descriptors.read_bytes())
    contract: Contract = {}
    for file in files.file:
        for message in file.message_type:
            contract.update(_messages(f"{file.package}.{message.name}", message))
        for enum in file.enum_type:
            contract[f"{file.package}.{enum.name}"] = _enum(enum)
        for service in file.service:
            contract[f"{file.package}.{service.name}"] = {method.name: _method(method) for method in service.method}
    return contract


def _messages(name: str, message: DescriptorProto) -> Iterator[tuple[str, dict[str, str]]]:
    fields = {str(field.number): _field(message, field) for field in message.field}
    # A message's reserved range excludes its end, an enum's includes it.
    ranges = [range(reserved.start, reserved.end) for reserved in message.reserved_range]
    yield name, fields | _reserved(ranges, message.reserved_name)
    for nested in message.nested_type:
        yield from _messages(f"{name}.{nested.name}", nested)
    for enum in message.enum_type:
        yield f"{name}.{enum.name}", _enum(enum)


def _field(message: DescriptorProto, field: FieldDescriptorProto) -> str:
    kind = field.type_name.removeprefix(".") or FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
    if field.label == FieldDescriptorProto.LABEL_REPEATED:
        kind = f"repeated {kind}"
    elif field.proto3_optional:
        kind = f"optional {kind}"
    elif field.HasField("oneof_index"):
        kind = f"oneof {message.oneof_decl[field.oneof_index].name} {kind}"
    return f"{field.name}: {kind}"


def _enum(enum: EnumDescriptorProto) -> dict[str, str]:
    ranges = [range(reserved.start, reserved.end + 1) for reserved in enum.reserved_range]
    return {str(value.number): value.name for value in enum.value} | _reserved(ranges, enum.reserved_name)


def _reserved(ranges: Sequence[range], names: Sequence[str]) -> dict[str, str]:
    for numbers in ranges:
        if len(numbers) > MOST_RESERVED:
            raise ContractError(f"reserves {len(numbers)} numbers at once; the most is {MOST_RESERVED}")
    keys = [str(number) for numbers in ranges for number in numbers] + list(names)
    return dict.fromkeys(keys, RESERVED)


def _method(method: MethodDescriptorProto) -> str:
    request = "stream " * method.client_streaming + method.input_type.removeprefix(".")
    response = "stream " * method.server_streaming + method.output_type.removeprefix(".")
    return f"{request} -> {response}"


def breaks(locked: Contract, current: Contract) -> list[str]:
    """Every way in which `current` breaks a promise of `locked`."""
    found: list[str] = []
    for name, entries in locked.items():
        if name not in current:
            found.append(f"{name}: was removed")
            continue
        now = current[name]
        for key, was in entries.items():
            if now.get(key) == was:
                continue
            if key not in now:
                found.append(f"{name} {key}: {was!r} was removed and not reserved")
            elif now[key] != RESERVED:
                found.append(f"{name} {key}: was {was!r}, is {now[key]!r}")
            elif now.get(was.split(":")[0]) != RESERVED:
                found.append(f"{name} {key}: the name of {was!r} is not reserved")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(description="Regenerates or checks the stubs and the lock of the protos.")
    parser.add_argument("--check", action="store_true", help="change nothing; fail on what is stale or broken")
    check: bool = parser.parse_args(arguments).check
    try:
        current = read_contract(ROOT)
        locked: Contract = json.loads(LOCK.read_text(encoding="utf-8")) if LOCK.exists() else {}
        problems = breaks(locked, current)
        if check:
            problems += stale_stubs()
            if not problems and locked != current:
                problems.append(f"{LOCK.name}: lacks what is new in the protos")
        elif not problems:
            write_stubs(ROOT)
            LOCK.write_text(json.dumps(current, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    except ContractError as error:
        problems = [str(error)]
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems and check:
        print("`make protos` renews the stubs and the lock; a broken promise it refuses", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
