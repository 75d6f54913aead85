"""Semantic versions as Kubernetes' CEL library reads and orders them."""

import itertools

import pytest

from claimscope.cel.semver import Semver, SemverError


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "Version string empty"),
        ("1.2", "No Major.Minor.Patch elements found"),
        ("01.2.3", 'Major number must not contain leading zeroes "01"'),
        ("1.2.x", 'Invalid character(s) found in patch number "x"'),
        ("v1.2.3", 'Invalid character(s) found in major number "v1"'),
        ("1.2.3-01", 'Numeric PreRelease version must not contain leading zeroes "01"'),
        ("1.2.3-", "Prerelease is empty"),
        ("1.2.3+", "Build meta data is empty"),
        ("1.2.3+ü", 'Invalid character(s) found in build meta data "ü"'),
        ("99999999999999999999.0.0", 'strconv.ParseUint: parsing "99999999999999999999": value out of range'),
    ],
)
def test_what_is_no_version_is_refused(text: str, why: str) -> None:
    with pytest.raises(SemverError) as refused:
        Semver.parse(text)
    assert str(refused.value) == why


def test_versions_are_in_the_order_of_semver_org() -> None:
    ordered = ["1.0.0-alpha", "1.0.0-alpha.1", "1.0.0-alpha.beta", "1.0.0-beta", "1.0.0-beta.2", "1.0.0-beta.11",
               "1.0.0-rc.1", "1.0.0", "1.0.1", "1.2.0", "1.10.0", "2.0.0"]  # fmt: skip
    for smaller, larger in itertools.pairwise(ordered):
        assert Semver.parse(smaller) < Semver.parse(larger)
        assert Semver.parse(smaller).compare(Semver.parse(larger)) == -1


def test_a_number_comes_before_a_word() -> None:
    assert Semver.parse("1.0.0-999") < Semver.parse("1.0.0-a")


def test_build_metadata_plays_no_part() -> None:
    assert Semver.parse("1.2.3+build.5") == Semver.parse("1.2.3")
    assert str(Semver.parse("1.2.3-rc.1+build")) == "1.2.3-rc.1"


@pytest.mark.parametrize(
    ("text", "version"),
    [("550", "550.0.0"), ("v1.2", "1.2.0"), ("01.02.03", "1.2.3"), ("550.163.01", "550.163.1"), ("00", "0.0.0"),
     ("1.2.3-rc1", "1.2.3-rc1")],
)  # fmt: skip
def test_normalising_fills_up_and_strips(text: str, version: str) -> None:
    assert str(Semver.parse(text, normalize=True)) == version


def test_normalising_does_not_guess_at_a_short_version_with_a_tail() -> None:
    with pytest.raises(SemverError, match="short version cannot contain PreRelease/Build meta data"):
        Semver.parse("1.2-rc1", normalize=True)
