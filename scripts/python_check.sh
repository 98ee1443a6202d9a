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

fresh "$venv" numpy pytest torch transformers safetensors "scikit-build-core>=1.0" "nanobind>=3.1" "nanobind-backend>=1.0" ninja mypy
rm -rf build/wheels
"$venv/bin/pip" wheel -q --disable-pip-version-check --no-build-isolation --no-deps -C cmake.define.MAMBA_WERROR=ON \
  -w build/wheels ./python
ls -l build/wheels
"$venv/bin/pip" install -q --disable-pip-version-check --no-deps --force-reinstall build/wheels/*.whl
echo "== types"
"$venv/bin/mypy" --python-executable "$venv/bin/python" -p mamba_cpp
echo "== with PyTorch"
"$venv/bin/pytest" -q -p no:cacheprovider python/tests "$@"
echo "== without PyTorch"
fresh "$bare" numpy pytest safetensors build/wheels/*.whl
"$bare/bin/pytest" -q -p no:cacheprovider python/tests
