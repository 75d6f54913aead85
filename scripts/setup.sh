#!/usr/bin/env bash
# Makes .venv with the locked dependencies from nothing but Python 3.11 or newer. Quick when nothing changed.
set -euo pipefail
cd "$(dirname "$0")/.."
uv_version=0.13.9
stamp=.venv/.claimscope-setup

fail() { printf 'setup: %s\n' "$1" >&2; exit 1; }

wanted=$(cat pyproject.toml uv.lock scripts/setup.sh scripts/uv.txt | cksum)
if [ -x .venv/bin/claimscope ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then exit 0; fi

python=
for candidate in "${PYTHON:-python3}" python3.14 python3.13 python3.12 python3.11; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        python=$(command -v "$candidate")
        break
    fi
done
[ -n "$python" ] || fail "no Python 3.11 or newer found: install one, or name it with PYTHON=..."

# uv lives outside .venv, because `uv sync` removes from there what the lock does not name.
if [ "$(build/uv/bin/uv --version 2>/dev/null | cut -d' ' -f2)" != "$uv_version" ]; then
    echo "setup: installing uv $uv_version" >&2
    mkdir -p build
    if ! "$python" -c 'import ensurepip' 2>/dev/null; then
        # Debian and Ubuntu split ensurepip off into a package of its own.
        package=$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
        scripts/apt.sh "$package" || fail "$python cannot make virtual environments: install $package"
    fi
    rm -rf build/uv
    "$python" -m venv build/uv || fail "cannot make a virtual environment in build/uv with $python"
    uv=("uv==$uv_version")
    # The hashes are those of the wheels for Linux with glibc, on which the image and all workflows are built.
    if [ "$(uname -s)" = Linux ] && getconf GNU_LIBC_VERSION >/dev/null 2>&1; then
        uv=(--require-hashes --only-binary=:all: --requirement=scripts/uv.txt)
    fi
    build/uv/bin/pip install --quiet --disable-pip-version-check "${uv[@]}" \
        || fail "cannot install uv $uv_version: is the package index reachable, and is the hash that of scripts/uv.txt?"
fi

echo "setup: installing the locked dependencies into .venv" >&2
UV_PROJECT_ENVIRONMENT=.venv UV_PYTHON_DOWNLOADS=never \
    build/uv/bin/uv sync --quiet --locked --all-extras --python "$python" \
    || fail "uv could not install what uv.lock names"
printf '%s\n' "$wanted" >"$stamp"
