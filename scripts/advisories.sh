#!/usr/bin/env bash
# Fails where a package of the image has a known vulnerability, or where the source of advisories does not answer.
# A source that knows nothing says "no known vulnerabilities" of everything: so it is asked about an old package first.
set -euo pipefail
cd "$(dirname "$0")/.."
uv=$(command -v build/uv/bin/uv || command -v uv) || { echo "advisories: no uv: run \`make setup\`" >&2; exit 1; }
audit=("$uv" tool run "pip-audit==2.10.1" --progress-spinner=off --disable-pip --no-deps)
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT

echo 'jinja2==2.4.1' >"$directory/canary.txt" # CVE-2014-1402, CVE-2019-10906 and more
if "${audit[@]}" --requirement "$directory/canary.txt" >"$directory/canary.log" 2>&1; then
    echo "advisories: the source knows nothing of jinja2 2.4.1, which has known vulnerabilities: it cannot be relied on" >&2
    exit 1
elif ! grep -Eq '\b(PYSEC-[0-9]{4}|CVE-[0-9]{4}|GHSA)-[0-9a-z]' "$directory/canary.log"; then # an error names the package, too
    echo "advisories: pip-audit could not ask: $(tail -n1 "$directory/canary.log")" >&2
    exit 1
fi

"$uv" export --quiet --frozen --no-dev --no-emit-project --extra=cel --output-file="$directory/image.txt"
"${audit[@]}" --require-hashes --requirement "$directory/image.txt"
