#!/usr/bin/env bash
# image_smoke.sh IMAGE: starts it as hardened as the chart does, the agent as uid 0 without a capability, and waits until
# its health check passes.
set -euo pipefail
image=${1:?usage: scripts/image_smoke.sh IMAGE}
hardened=(--read-only --cap-drop=ALL --security-opt=no-new-privileges)

docker run --rm "${hardened[@]}" "$image" --version
docker run --rm "${hardened[@]}" --entrypoint /usr/bin/python3 "$image" -c 'import claimscope.agent.wiring, claimscope.controller, cel_expr_python'

container=$(docker run --detach "${hardened[@]}" --user=0:0 --tmpfs=/run/claimscope --health-interval=1s "$image" agent \
    --attribution=off --node-name=smoke --state-file=/run/claimscope/agent.json --control-socket=/run/claimscope/control.sock)
trap 'docker rm --force "$container" >/dev/null' EXIT
for _ in $(seq 60); do
    status=$(docker inspect --format '{{.State.Health.Status}}' "$container")
    if [ "$status" = healthy ]; then
        echo "healthy: $image"
        exit 0
    fi
    sleep 1
done
docker logs "$container" >&2
echo "image_smoke: $image is $status after 60 s instead of healthy: its log is above" >&2
exit 1
