#!/usr/bin/env bash
# The published tests of mamba_ssm's selective scan and of causal-conv1d's convolution, against mamba_cpp.torch: a
# temporary copy of each has its import line changed, and nothing else on a GPU.
#
#   scripts/published_tests.sh FOLDER_OF_MAMBA FOLDER_OF_CONV [for pytest, as -k 'seqlen'] [--device cpu]
#
# The folders are clones of state-spaces/mamba and Dao-AILab/causal-conv1d, which need no building: of their packages only
# the plain functions that tests compare with are read. PYTHON (default: python3) needs mamba_cpp, PyTorch, pytest and
# einops. With --device cpu tensors are on the CPU, and what asks for CUDA or takes hours there is skipped. Tests that do not
# apply are skipped with the reason, which the summary lists.
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2,11p' "$0" >&2; exit 2; }
mamba=$(realpath "$1")/tests/ops/test_selective_scan.py
mamba_references=$(realpath "$1")/mamba_ssm/ops/selective_scan_interface.py
conv=$(realpath "$2")/tests/test_causal_conv1d.py
conv_references=$(realpath "$2")/causal_conv1d/causal_conv1d_interface.py
shift 2
for file in "$mamba" "$mamba_references" "$conv" "$conv_references"; do
  [ -f "$file" ] || { echo "published_tests.sh: expected $file, got no such file" >&2; exit 2; }
done
device=cuda
arguments=()
while [ $# -gt 0 ]; do
  if [ "$1" = --device ]; then device=$2 && shift 2; else arguments+=("$1") && shift; fi
done

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python=${PYTHON:-python3}

"$python" - "$work" "$device" "$mamba" "$mamba_references" "$conv" "$conv_references" <<'PATCH'
import ast
import pathlib
import re
import sys

work, device, mamba, mamba_references, conv, conv_references = sys.argv[1:]
work = pathlib.Path(work)


def references(path, names, imports):
    """The source of the functions `names` in the file, as a module of their own."""
    source = pathlib.Path(path).read_text()
    found = {node.name: node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)}
    missing = [name for name in names if name not in found]
    if missing:
        sys.exit(f"published_tests.sh: {path}: expected functions {names}, got no {missing}")
    return imports + "\n\n".join(ast.get_source_segment(source, found[name]) for name in names) + "\n"


def patched(path, lines):
    """The tests, with each import line of `lines` replaced."""
    source = pathlib.Path(path).read_text()
    for old, new in lines.items():
        if source.count(old + "\n") != 1:
            sys.exit(f"published_tests.sh: {path}: expected one line {old!r}, got {source.count(old)}")
        source = source.replace(old + "\n", new)
    if device != "cuda":
        source = re.sub(r"""device = (["'])cuda\1""", f"device = '{device}'", source)
    return source


torch_imports = "import torch\nimport torch.nn.functional as F\nfrom einops import rearrange, repeat\n\n\n"
(work / "references_scan.py").write_text(references(mamba_references, ["selective_scan_ref"], torch_imports))
(work / "references_conv.py").write_text(references(conv_references, ["causal_conv1d_ref"], torch_imports))
scan = "mamba_ssm.ops.selective_scan_interface import"
(work / "test_selective_scan.py").write_text(patched(mamba, {
    f"from {scan} selective_scan_fn, selective_scan_ref":
        "from mamba_cpp.torch import selective_scan_fn\nfrom references_scan import selective_scan_ref\n",
    f"from {scan} mamba_inner_fn, mamba_inner_ref": "",
}))
package = "from causal_conv1d.causal_conv1d"
(work / "test_causal_conv1d.py").write_text(patched(conv, {
    f"{package}_interface import causal_conv1d_fn, causal_conv1d_ref":
        "from mamba_cpp.torch import causal_conv1d_fn\nfrom references_conv import causal_conv1d_ref\n",
    f"{package}_interface import causal_conv1d_update, causal_conv1d_update_ref": "",
    f"{package}_varlen import causal_conv1d_varlen_states, causal_conv1d_varlen_states_ref": "",
}))
(work / "conftest.py").write_text(f"device = {device!r}\n" + '''
import pytest

NOT_OURS = {
    "test_mamba_inner_fn": "mamba_inner_fn is not offered: mamba_cpp.torch.Mamba is the layer as one operation",
    "test_causal_conv1d_update": "causal_conv1d_update is not offered: a state is never changed in place",
    "test_causal_conv1d_update_with_batch_gather": "causal_conv1d_update is not offered",
    "test_causal_conv1d_update_with_padding": "causal_conv1d_update is not offered",
    "test_causal_conv1d_get_states": "causal_conv1d_varlen_states is not offered",
    "test_causal_conv1d_bwd_default_mode_is_not_reproducible": "gradients are the same every time in every mode",
}
LONG = {"test_causal_conv1d_race_condition": "10,000 calls of 16 M elements, for a GPU"}


def pytest_collection_modifyitems(items):
    for item in items:
        reason = NOT_OURS.get(item.originalname)
        if reason is None and device != "cuda":
            reason = LONG.get(item.originalname)
        if reason is not None:
            item.add_marker(pytest.mark.skip(reason=reason))
''')
PATCH
cd "$work"
PYTHONPATH=$work${PYTHONPATH:+:$PYTHONPATH} "$python" -m pytest -q -rs -p no:cacheprovider --rootdir "$work" ${arguments[@]+"${arguments[@]}"} .
