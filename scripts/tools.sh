#!/usr/bin/env bash
# Brings a C compiler, Prometheus (with promtool), Alertmanager (with amtool) and openssl, through apt where that is
# allowed.
# What cannot be had is said in one line each; with CLAIMSCOPE_REQUIRE_TOOLS=1 that is an error.
set -euo pipefail
cd "$(dirname "$0")/.."
status=0

missing() {
    echo "tools: left out: $1" >&2
    [ "${CLAIMSCOPE_REQUIRE_TOOLS:-}" != 1 ] || status=1
}

# A compiler without libc's headers is no use.
compiles() { command -v cc >/dev/null && echo '#include <stdio.h>' | cc -E -o /dev/null - 2>/dev/null; }

compiles || scripts/apt.sh gcc libc6-dev || true
compiles || missing "no C compiler, so no simulated GPUs: install gcc and libc6-dev"

if ! command -v promtool >/dev/null || ! command -v prometheus >/dev/null; then
    if scripts/apt.sh prometheus && command -v systemctl >/dev/null; then
        # Installed a moment ago by us and for its programs only: it shall not start at the next boot either.
        sudo=; [ "$(id -u)" -eq 0 ] || sudo="sudo -n"
        $sudo systemctl disable --now --quiet prometheus >/dev/null 2>&1 || true
    fi
fi
command -v prometheus >/dev/null && command -v promtool >/dev/null \
    || missing "no Prometheus, so no PromQL in the demo and no promtool in the tests: install prometheus"
if ! command -v amtool >/dev/null; then
    if scripts/apt.sh prometheus-alertmanager && command -v systemctl >/dev/null; then
        sudo=; [ "$(id -u)" -eq 0 ] || sudo="sudo -n"
        $sudo systemctl disable --now --quiet prometheus-alertmanager >/dev/null 2>&1 || true
    fi
fi
command -v amtool >/dev/null || missing "no Alertmanager, so its example is not checked: install prometheus-alertmanager"
command -v openssl >/dev/null || scripts/apt.sh openssl || true
command -v openssl >/dev/null || missing "no openssl, so TLS is not tested: install openssl"
exit "$status"
