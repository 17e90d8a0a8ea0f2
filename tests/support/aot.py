"""Triton kernels compiled for a device that is not there: registers, shared memory and which instructions they use."""

import os
import re
import subprocess
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.experimental.gluon._runtime import GluonASTSource, GluonJITFunction

HOPPER = GPUTarget("cuda", 90, 32)
# Bytes of shared memory that a program can have there.
HOPPER_SHARED_MEMORY = 227 * 1024
DUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z0-9_]+)", re.MULTILINE)


def compiled(kernel, types: dict[str, str], constants: dict, aligned=(), target=HOPPER, **options):
    """`kernel` with arguments of these types, integers of 32 bits where not named, `aligned` ones multiples of 16."""
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in kernel.arg_names}
    multiples = {
        (kernel.arg_names.index(name),): [["tt.divisibility", 16]]
        for name in kernel.arg_names
        if name in aligned or signature[name].startswith("*")
    }
    source_of = GluonASTSource if isinstance(kernel, GluonJITFunction) else ASTSource
    source = source_of(
        kernel, signature, constexprs={(kernel.arg_names.index(n),): v for n, v in constants.items()}, attrs=multiples
    )
    return triton.compile(source, target=target, options=options)


def report(built, folder: Path) -> dict[str, int]:
    """{registers, stack, shared, each instruction: how often it stands in the code}."""
    binary = folder / "kernel.cubin"
    binary.write_bytes(built.asm["cubin"])

    def dump(flag):
        return subprocess.run([os.fspath(DUMP), flag, binary], capture_output=True, text=True, check=True).stdout

    registers, stack = re.search(r"REG:(\d+).*?STACK:(\d+)", dump("--dump-resource-usage")).groups()
    found = {"registers": int(registers), "stack": int(stack), "shared": built.metadata.shared}
    for name in INSTRUCTION.findall(dump("--dump-sass")):
        found[name] = found.get(name, 0) + 1
    return found
