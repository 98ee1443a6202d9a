#!/usr/bin/env python3
"""Checks who includes whom: headers only what lies above them, kernels only L0-L2, benches only <mamba/...>, programs
only <mamba/...> without its detail/, and the folders of src/ and examples/rl/ only those that their rows below name. Kernels do not
name what lies below L2 either, and the files of a mixer are included by the list of mixers alone. Public headers show what
they declare to users of a shared library."""
import pathlib
import re
import sys

LAYERS = [
    {"export", "error", "dtype", "bytes", "device", "shape", "version"},
    {"tensor", "tensor_view", "row_map", "stream", "detail/constant_weights", "check", "safetensors", "graph"},
    {"ops", "detail/fused_ops", "detail/scan_chunk", "grad_ops", "train_ops"},
    {"config", "weights", "state", "tape", "detail/mixer", "mamba1", "mamba1_grad", "mamba2", "mamba2_grad",
     "layer"},
    {"stack", "logits", "language_model", "state_file", "loss", "optimizer"},
    {"sampling", "generate_options", "generator_snapshot", "generator", "tokenizer", "state_cache", "speculative",
     "checkpoint", "data_parallel"},
    {"mamba"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
KERNEL_LEVEL = 2
# Folders, and which others their files include. All of src/ includes detail/ and <mamba/...>.
HOST = {
    "core": set(),
    "model": {"core"},
    "files": {"core", "model"},
    "text": {"core", "files"},
    "generate": {"core", "files", "model"},
    "ops": {"core"},
}
FAMILIES = {"scan", "ssd", "conv", "matmul", "norm", "sample", "train", "memory"}  # of operations, on both devices
KERNELS = {"gpu": set(), **{family: {"gpu"} for family in FAMILIES}, "ssd": {"gpu", "scan"}, "ssd_grad": {"gpu", "scan", "ssd"},
           "step": {"gpu", "scan", "ssd", "conv", "matmul", "norm"}}
HOST_OPS = {".": set(), **{family: {"."} for family in FAMILIES}}  # "." is src/host/ops itself
RL = {
    ".": set(),
    "env": {"."},
    "gru": {"."},
    "agent": {".", "gru", "ppo"},  # for its addition of rows
    "rollout": {".", "env", "gru", "agent"},
    "ppo": {".", "env", "agent", "rollout"},
    "app": {"ppo"},
}
SUFFIXES = {".cpp", ".cu", ".hpp", ".cuh", ".h"}
INCLUDED_AS = {"src/host": "host/", "src/kernels": "kernels/", "src/host/ops": "host/ops/", "examples/rl": "rl/"}
MOST_FILES = 24  # of a folder under src/ or examples/rl/
PUBLIC = re.compile(r"mamba/((?:detail/)?\w+)\.hpp")
UNMARKED = re.compile(r"^namespace (?!MAMBA_EXPORT )mamba", re.MULTILINE)
TYPE = re.compile(r"^(?:class|struct) (\w+)", re.MULTILINE)
NOT_CODE = re.compile(r'//.*|"(?:[^"\\\n]|\\.)*"')  # comments and texts
MODEL = "src/host/model"
NOT_MIXERS = {"config", "state"}  # its other folders are mixers, which model/mixers.cpp lists
NOT_IN_HEADERS = re.compile(r"(fmt|hwy|nlohmann|unicode|cuda|cub|cublas|nccl|CLI|omp)[/._]")


def includes(path):
    return re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', path.read_text(), re.MULTILINE)


def folders(root, base, allowed):
    """Includes from one folder of base/ to another that its row does not name; folders without a row."""
    for source in sorted(p for p in (root / base).rglob("*") if p.suffix in SUFFIXES):
        own = source.relative_to(root / base).parent.parts
        own = own[0] if own else "."
        if own not in allowed:
            yield f"{source}: a folder that is not in the table"
            continue
        for name in includes(source):
            prefix = INCLUDED_AS[base]
            if not name.startswith(prefix):
                continue
            rest = name[len(prefix):].split("/")
            other = rest[0] if len(rest) > 1 else "."
            if other != own and other not in allowed[own]:
                yield f"{source}: {base}/{own} does not know {name}"


def problems(root):
    for base, allowed in (("src/host", HOST), ("src/kernels", KERNELS), ("examples/rl", RL)):
        yield from folders(root, base, allowed)
    yield from folders(root, "src/host/ops", HOST_OPS)
    for base in ("src", "examples/rl"):
        for folder in [root / base, *sorted(p for p in (root / base).rglob("*") if p.is_dir())]:
            count = sum(p.is_file() for p in folder.iterdir())
            if count > MOST_FILES:
                yield f"{folder}: {count} files, more than {MOST_FILES}"
    above_kernels = set()  # the types that kernels do not name
    for header in sorted((root / "include/mamba").rglob("*.hpp")):
        stem = header.relative_to(root / "include/mamba").with_suffix("").as_posix()
        if stem not in LEVEL:
            yield f"{header}: not in the table of layers"
            continue
        if UNMARKED.search(header.read_text()):
            yield f"{header}: expected namespace MAMBA_EXPORT mamba, got one that a shared library hides"
        if LEVEL[stem] > KERNEL_LEVEL:
            above_kernels.update(TYPE.findall(header.read_text()))
        for name in includes(header):
            public = PUBLIC.fullmatch(name)
            if public and LEVEL.get(public[1], 99) > LEVEL[stem]:
                yield f"{header}: includes {name} from a layer above its own"
            if NOT_IN_HEADERS.match(name):
                yield f"{header}: a public header is plain C++17, but includes {name}"
    sources = [p for p in (root / "src").rglob("*") if p.suffix in SUFFIXES]
    for source in sorted(sources):
        part = source.relative_to(root / "src").parts
        kernel = part[0] in ("kernels", "detail") or part[:2] == ("host", "ops")
        if kernel:
            code = NOT_CODE.sub("", source.read_text())
            for name in sorted(above_kernels & set(re.findall(r"\w+", code))):
                yield f"{source}: a kernel knows {name}"
        for name in includes(source):
            public = PUBLIC.fullmatch(name)
            if kernel and public and LEVEL.get(public[1], 99) > KERNEL_LEVEL:
                yield f"{source}: a kernel includes {name}"
            if part[0] == "host" and name.startswith("kernels/") or part[0] == "kernels" and name.startswith("host/"):
                yield f"{source}: host and kernels include each other ({name})"
            if part[0] == "detail" and name.startswith(("host/", "kernels/")):
                yield f"{source}: detail includes {name}"
            mixer = pathlib.PurePath("src", name).parent
            foreign = source != root / MODEL / "mixers.cpp" and source.parent != root / mixer
            if mixer.parent.as_posix() == MODEL and mixer.name not in NOT_MIXERS and foreign:
                yield f"{source}: only mixers.cpp and the mixer itself include {name}"
    for folder, private in (("examples", ("mamba/detail/",)), ("bench", ())):
        for source in sorted(p for p in (root / folder).rglob("*") if p.suffix in {".cpp", ".hpp", ".cu", ".cuh"}):
            for name in includes(source):
                if name.startswith((*private, "detail/", "host/", "kernels/", "src/")) or "../src" in name:
                    yield f"{source}: needs something private ({name})"


def main():
    found = list(problems(pathlib.Path(__file__).resolve().parent.parent))
    print("\n".join(found) if found else "layers: every include is allowed")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
