#!/usr/bin/env python3
"""Checks who includes whom: headers only what lies above them, kernels only L0-L2, programs only <mamba/...>."""
import pathlib
import re
import sys

LAYERS = [
    {"error", "dtype", "device", "version"},
    {"tensor", "stream", "check", "safetensors", "graph"},
    {"ops", "grad_ops", "train_ops"},
    {"config", "weights", "state", "tape", "layer", "layer_grad"},
    {"stack", "language_model", "state_file", "loss", "optimizer"},
    {"sampling", "generator", "tokenizer", "state_cache", "speculative", "checkpoint", "data_parallel"},
    {"mamba"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
KERNEL_LEVEL = 2
PUBLIC = re.compile(r"mamba/(\w+)\.hpp")
NOT_IN_HEADERS = re.compile(r"(fmt|hwy|nlohmann|unicode|cuda|cub|cublas|nccl|CLI|omp)[/._]")


def includes(path):
    return re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', path.read_text(), re.MULTILINE)


def problems(root):
    for header in sorted((root / "include/mamba").glob("*.hpp")):
        if header.stem not in LEVEL:
            yield f"{header}: not in the table of layers"
            continue
        for name in includes(header):
            public = PUBLIC.fullmatch(name)
            if public and LEVEL.get(public[1], 99) > LEVEL[header.stem]:
                yield f"{header}: includes {name} from a layer above its own"
            if NOT_IN_HEADERS.match(name):
                yield f"{header}: a public header is plain C++17, but includes {name}"
    sources = [p for p in (root / "src").rglob("*") if p.suffix in {".cpp", ".cu", ".hpp", ".cuh", ".h"}]
    for source in sorted(sources):
        part = source.relative_to(root / "src").parts
        kernel = part[0] == "kernels" or part[:2] == ("host", "ops")
        for name in includes(source):
            public = PUBLIC.fullmatch(name)
            if kernel and public and LEVEL.get(public[1], 99) > KERNEL_LEVEL:
                yield f"{source}: a kernel includes {name}"
            if part[0] == "host" and name.startswith("kernels/") or part[0] == "kernels" and name.startswith("host/"):
                yield f"{source}: host and kernels include each other ({name})"
            if part[0] == "detail" and (name.startswith("host/") or name.startswith("kernels/")):
                yield f"{source}: detail includes {name}"
    for folder in ("examples", "bench"):
        for source in sorted((root / folder).rglob("*.[ch]pp")):
            for name in includes(source):
                if name.startswith(("detail/", "host/", "kernels/", "src/")) or "../src" in name:
                    yield f"{source}: needs something private ({name})"


def main():
    found = list(problems(pathlib.Path(__file__).resolve().parent.parent))
    print("\n".join(found) if found else "layers: every include is allowed")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
