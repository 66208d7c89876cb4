"""Nothing that is written or printed names a person: home folders and hub tokens are masked, everything else stays."""

from __future__ import annotations

import os

import pytest

from harness.system.masking import mask


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("/home/ann/models and /Users/bob/x", "~/models and ~/x"),
        ("/var/home/ann/m /export/home/ann/m /usr/home/ann/m", "~/m ~/m ~/m"),
        ("C:\\Users\\ann\\models", "~\\models"),
        ("not /srv/home/carl, https://hub/home/x or ./home/y", "not /srv/home/carl, https://hub/home/x or ./home/y"),
        ("/root/m, /rooted and /srv/root", "~/m, /rooted and /srv/root"),
        ("hf_" + "aB3dE5" * 4, "hf_***"),
    ],
)
def test_usual_homes_and_tokens_are_masked_and_nothing_else(text: str, masked: str) -> None:
    assert mask(text) == masked


@pytest.mark.parametrize("home", ["/data/people/Ann Li", "/srv/ci/", "/scratch"])
def test_the_home_of_this_user_is_masked_wherever_it_is(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", home)
    place = home.rstrip("/")
    assert mask(f"{place}/m: {place}, {place}-of-others/m {place}2") == f"~/m: ~, {place}-of-others/m {place}2"
    assert mask(f"/mnt{place}/m") == f"/mnt{place}/m"


@pytest.mark.parametrize("home", ["/", "", "relative"])
def test_a_home_that_is_no_folder_of_a_person_masks_nothing(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", home)
    assert mask("/srv/models/relative/x /") == "/srv/models/relative/x /"


def test_a_user_unknown_to_the_system_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(_: int) -> None:
        raise KeyError

    monkeypatch.setattr("pwd.getpwuid", unknown)
    monkeypatch.setenv("HOME", "/data/ann")
    assert mask(f"/data/ann/m {os.sep}x") == "~/m /x"
