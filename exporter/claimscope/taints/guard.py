"""How far may fencing go on this cluster: is the API there, and is the scheduler safe with it?

kube-scheduler 1.36.0 to 1.36.2 ignores DeviceTaintRules, and exits on the next change of a ResourceSlice as long as
any rule exists, one of effect None too (kubernetes/kubernetes #139651, fixed in 1.36.3). The scheduler tells nobody
its version; it is at most one minor version older than the API server, and in nearly every cluster the same release.
So the API server's version stands for both, and what cannot be read is taken for the worse:

    served        version                     highest mode
    nothing       any                         observe
    v1 or v1beta2 1.36.0-1.36.2, or older     observe; 1.37 alpha and beta too
    v1beta2       cannot be read              observe: it may be one of these
    v1            cannot be read              announce
    v1 or v1beta2 1.36.3 and newer            enforce
    v1alpha3      1.35                        enforce, by opt-in

While a cluster is upgraded, its API server may be at 1.36.3 or 1.37 and its scheduler still at 1.36.2. That cannot be
seen from here, so a server that was one of those releases is trusted only after 30 minutes in which it was none. A
control plane that takes longer needs a pause (`claimscope taints pause`) meanwhile.
v1alpha3 is written only in 1.35, and only by opt-in (`alpha_api` of the policy): older schedulers know neither effect
None nor status, newer ones read v1beta2.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from claimscope.kube.api import ApiClient, ApiError, ApiReason, discover, server_version
from claimscope.kube.objects import RESOURCE_GROUP
from claimscope.taints.model import Mode

ALPHA: Final = "v1alpha3"
RULE_VERSIONS: Final = ("v1", "v1beta2", ALPHA)
RULES: Final = "devicetaintrules"
UPSTREAM_ISSUE: Final = "https://github.com/kubernetes/kubernetes/issues/139651"

_VERSION: Final = re.compile(r"v?(\d+)\.(\d+)(?:\.(\d+))?(?:-(alpha|beta|rc)\.)?")
_FIXED: Final = (1, 36, 3)
_BRANCHED: Final = (1, 37, 0)  # its alphas and betas may have been cut before the fix, too
_BUG: Final = "scheduler_bug"
SETTLES_SECONDS: Final = 1800.0
_RANK: Final = {Mode.OBSERVE: 0, Mode.ANNOUNCE: 1, Mode.ENFORCE: 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowed:
    """The highest mode that is safe, and why no higher one is."""

    mode: Mode
    version: str | None = None  # in which rules are written; None: in none
    reason: str = ""  # a word for a label; "" where nothing is lowered
    text: str = ""  # a sentence for people

    @property
    def lifts(self) -> bool:
        """Whether rules of ours that stand are taken away: they do harm, or nobody wants them in this version."""
        return self.reason in (_BUG, "alpha_api")

    @property
    def harms(self) -> bool:
        """Whether this release's scheduler exits over rules."""
        return self.reason == _BUG

    def lowers(self, wanted: Mode) -> bool:
        """True where the configured mode is not allowed."""
        return _RANK[wanted] > _RANK[self.mode]

    def limit(self, wanted: Mode) -> Mode:
        """The configured mode, or the lower one that is allowed."""
        return self.mode if self.lowers(wanted) else wanted


def allowed(git_version: str | None, served: str | None, *, alpha: bool = False) -> Allowed:
    """What the API server's version, None where it cannot be read, and the served API version allow.

    `alpha`: somebody opted in to v1alpha3.
    """
    if served is None:
        return Allowed(
            mode=Mode.OBSERVE, reason="api_absent",
            text="the API server serves devicetaintrules neither as v1 nor as v1beta2: no device is tainted",
        )
    number, before_release = _parse(git_version)
    if served == ALPHA:
        return _alpha(git_version, number, opted_in=alpha)
    if number is None:
        return _unreadable(git_version, served)
    # A release candidate of the fixed release may have been cut before the fix.
    early = (number == _FIXED and before_release) or (number == _BRANCHED and before_release in ("alpha", "beta"))
    if number < _FIXED or early:
        return Allowed(
            mode=Mode.OBSERVE, version=served, reason=_BUG,
            text=f"kube-scheduler of Kubernetes {git_version} exits while any DeviceTaintRule exists, so none is "
            f"written ({UPSTREAM_ISSUE}); upgrade to 1.36.3 or newer",
        )
    return Allowed(mode=Mode.ENFORCE, version=served)


def _alpha(git_version: str | None, number: tuple[int, int, int] | None, *, opted_in: bool) -> Allowed:
    if opted_in and number is not None and number[:2] == (1, 35):
        return Allowed(mode=Mode.ENFORCE, version=ALPHA)
    return Allowed(
        mode=Mode.OBSERVE, version=ALPHA, reason="alpha_api",
        text=f"the API server ({git_version or 'of unknown version'}) serves devicetaintrules as {ALPHA} alone, which "
        "is written in Kubernetes 1.35 only, and with `alpha_api: true` in the policy: no device is tainted",
    )


def _unreadable(git_version: str | None, served: str) -> Allowed:
    found = "cannot be read" if git_version is None else f"is said to be `{git_version}`"
    if served == "v1":
        return Allowed(
            mode=Mode.ANNOUNCE, version=served, reason="version_unknown",
            text=f"the Kubernetes version {found}: devices are announced and none is kept from work",
        )
    return Allowed(
        mode=Mode.OBSERVE, version=served, reason="version_unknown",
        text=f"the Kubernetes version {found}, and with {served} it may be one whose scheduler exits while any "
        f"DeviceTaintRule exists ({UPSTREAM_ISSUE}): no device is tainted",
    )


def settled(found: Allowed, harmed_wall: float, now_wall: float) -> Allowed:
    """The same, or what went for the release that the server was until `harmed_wall`: its scheduler may still be it."""
    if found.harms or found.version is None or found.lifts or not 0 <= now_wall - harmed_wall < SETTLES_SECONDS:
        return found
    return Allowed(
        mode=Mode.OBSERVE, version=found.version, reason=_BUG,
        text=f"the API server was of a release whose kube-scheduler exits while any DeviceTaintRule exists, and the "
        f"scheduler may still be ({UPSTREAM_ISSUE}); no device is tainted for {SETTLES_SECONDS / 60:.0f} minutes",
    )


def _parse(git_version: str | None) -> tuple[tuple[int, int, int] | None, str]:
    found = _VERSION.match(git_version or "")
    if found is None:
        return None, ""
    major, minor, patch = found[1], found[2], found[3]
    return (int(major), int(minor), int(patch or 0)), found[4] or ""


async def examine(api: ApiClient, *, alpha: bool = False) -> Allowed:
    """Asks the API server. Raises ApiError where it does not answer; being refused the version is an answer."""
    try:
        served = await discover(api, RESOURCE_GROUP, RULE_VERSIONS, RULES)
    except ApiError as error:
        if error.reason is not ApiReason.NOT_FOUND:
            raise
        return allowed(None, None)
    try:
        version: str | None = (await server_version(api)).git_version
    except ApiError as error:
        if error.reason not in (ApiReason.FORBIDDEN, ApiReason.NOT_FOUND, ApiReason.MALFORMED):
            raise
        version = None
    return allowed(version, served, alpha=alpha)
