"""Tests run in the profile and on the devices that were asked for, and say so."""

from collections.abc import Callable
from functools import partial

import pytest
from _pytest.mark import ParameterSet
from hypothesis import settings

from tests import conftest
from tests.support.ledger import ROOT


@pytest.mark.parametrize(
    ("environment", "profile"),
    [
        ({}, "default"),
        ({"CI": "false"}, "default"),
        ({"CI": "true"}, "ci"),
        ({"CI": "true", "HYPOTHESIS_PROFILE": "thorough"}, "thorough"),
    ],
    ids=["default", "ci_is_false", "ci_is_true", "a_named_profile_wins"],
)
def test_environment_chooses_the_profile(environment: dict[str, str], profile: str) -> None:
    assert conftest.chosen_profile(environment) == profile


def test_profile_of_this_run_is_loaded(request: pytest.FixtureRequest) -> None:
    asked = request.config.option.hypothesis_profile
    assert settings.get_current_profile_name() == asked


def test_ci_is_derandomised_and_thorough_searches_longest() -> None:
    profiles = conftest.PROFILES
    assert profiles["ci"].derandomize
    assert not profiles["thorough"].derandomize
    assert profiles["thorough"].max_examples > 10 * profiles["default"].max_examples
    assert profiles["ci"].max_examples == profiles["default"].max_examples


@pytest.mark.parametrize(
    ("asked", "ran", "skipped"),
    [
        (None, ["cpu", "cuda"], []),
        ("cpu", ["cpu"], []),
        ("mps", [], ["mps"]),
        ("all", ["cpu", "cuda"], ["mps"]),
    ],
    ids=["all_that_are_here", "the_one_asked_for", "an_absent_one_is_skipped", "all_there_are"],
)
def test_device_option_chooses_devices(
    monkeypatch: pytest.MonkeyPatch, asked: str | None, ran: list[str], skipped: list[str]
) -> None:
    monkeypatch.setattr(conftest, "is_present", lambda device: device != "mps")
    given = conftest.device_parameters(asked)
    assert [device for device in given if isinstance(device, str)] == ran
    skips = [device for device in given if isinstance(device, ParameterSet)]
    assert [skip.values for skip in skips] == [(device,) for device in skipped]
    assert [mark.kwargs["reason"] for skip in skips for mark in skip.marks] == [
        f"torch sees no {device} here" for device in skipped
    ]


def test_cpu_is_always_present() -> None:
    assert conftest.is_present("cpu")


FLAGS = """
import os
import sys
from tests.conftest import set_flags

def test_flags(request):
    option = request.config.getoption
    assert ("CUBLAS_WORKSPACE_CONFIG" in os.environ) == option("--deterministic")
    if option("--tf32") is None:
        assert "torch" not in sys.modules
        return
    import torch
    gpu, cudnn = torch.backends.cuda, torch.backends.cudnn
    assert torch.are_deterministic_algorithms_enabled()
    assert cudnn.deterministic
    assert not cudnn.enabled
    assert gpu.matmul.fp32_precision != "tf32"
    assert cudnn.conv.fp32_precision != "tf32"
    with cudnn.flags(enabled=True):  # which asks the older flags
        pass
    set_flags(tf32="on", deterministic=False, cudnn=True)
    assert gpu.matmul.fp32_precision == "tf32"
    assert cudnn.conv.fp32_precision == "tf32"
"""

SAMPLE = """
import pytest
from hypothesis import core, given, strategies as st

def test_on(device):
    assert device == "cpu"

@pytest.mark.thorough
@given(st.integers())
def test_for_long(x): pass

@pytest.mark.thorough
def test_seed(request):
    assert core.global_force_seed == int(request.config.option.hypothesis_seed)
"""

Run = Callable[..., pytest.RunResult]


@pytest.mark.parametrize(
    "options",
    [[], ["--tf32=off", "--deterministic", "--no-cudnn"]],
    ids=["none", "all"],
)
def test_options_set_the_flags_of_torch(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    pytester.makepyfile(FLAGS)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for name in ("CI", "HYPOTHESIS_PROFILE", "PYTEST_XDIST_WORKER", "CUBLAS_WORKSPACE_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    # The older flags warn, which must not end a run whose warnings are errors.
    run = pytester.runpytest_subprocess("-p", "tests.conftest", "-W", "error", *options)
    run.assert_outcomes(passed=1)


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the tests above in a process of their own, since Hypothesis has one profile in each."""
    pytester.makepyfile(SAMPLE)
    pytester.makeini("[pytest]\nmarkers = thorough")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for name in ("CI", "HYPOTHESIS_PROFILE", "PYTEST_XDIST_WORKER"):
        monkeypatch.delenv(name, raising=False)
    return partial(pytester.runpytest_subprocess, "-p", "tests.conftest", "-rs")


def test_run_names_its_profile_devices_and_reasons_to_skip(run: Run) -> None:
    result = run("--device=cpu", "-v")
    result.assert_outcomes(passed=1, skipped=2)
    result.stdout.fnmatch_lines(
        [
            "hypothesis profile: default",
            "*::test_on?cpu? PASSED*",
            "*runs with --hypothesis-profile=*",
        ]
    )


def test_thorough_run_prints_a_seed_that_its_workers_share(run: Run) -> None:
    result = run("--device=cpu", "--hypothesis-profile=thorough", "-n2")
    result.assert_outcomes(passed=3)
    result.stdout.re_match_lines([r"hypothesis profile: thorough, seed \d+ \(again: .*=\d+\)"])


def test_unknown_profile_is_refused(run: Run) -> None:
    result = run("--hypothesis-profile=lazy")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    known = "default, ci, thorough"
    result.stderr.fnmatch_lines([f"*unknown Hypothesis profile 'lazy'; known: {known}*"])
