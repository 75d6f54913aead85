#!/usr/bin/env bash
# apt.sh PACKAGE...: installs them without asking anything and without starting any service.
# Fails with one line where apt is absent or may not be used without a password.
set -euo pipefail
sudo=
if ! command -v apt-get >/dev/null; then
    echo "apt: not a Debian or Ubuntu machine: cannot install $*" >&2
    exit 1
elif [ "$(id -u)" -ne 0 ]; then
    if ! sudo -n true 2>/dev/null; then
        echo "apt: neither root nor sudo without a password: cannot install $*" >&2
        exit 1
    fi
    sudo="sudo -n"
fi

# A package's service starts at installation unless policy-rc.d forbids it.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap '$sudo rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' | $sudo tee "$policy" >/dev/null
    $sudo chmod 755 "$policy"
fi

log=$(mktemp)
install() {
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
        -o DPkg::Lock::Timeout=120 "$@" </dev/null >"$log" 2>&1
}
echo "apt: installing $*" >&2
if ! install "$@"; then
    $sudo apt-get update -qq -o DPkg::Lock::Timeout=120 </dev/null >"$log" 2>&1 || true
    if ! install "$@"; then
        echo "apt: cannot install $*: $(grep -m1 '^E:' "$log" || tail -n1 "$log")" >&2
        rm -f "$log"
        exit 1
    fi
fi
rm -f "$log"
