"""Hypothesis profiles, and the devices that tests run on."""

import os
import random

import pytest
from hypothesis import HealthCheck, settings

# Read once, when torch is imported. The tensors are small, and a second thread only waits (seen:
# three times as slow); besides, the workers of pytest-xdist fill the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

PROFILES = {
    # Deadlines and "too slow" measure the machine and its neighbours, not the code. In CI,
    # Hypothesis starts from settings of its own, so `derandomize` is said here too.
    "default": settings(
        max_examples=50,
        derandomize=False,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    ),
}
PROFILES["ci"] = settings(PROFILES["default"], derandomize=True, database=None, print_blob=True)
PROFILES["thorough"] = settings(PROFILES["default"], max_examples=2000, print_blob=True)
for name, profile in PROFILES.items():
    settings.register_profile(name, profile)

DEVICES = ("cpu", "cuda", "mps")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--device`."""
    parser.addoption(
        "--device",
        choices=[*DEVICES, "all"],
        help="devices that tests with a `device` argument run on (default: all that are here)",
    )


@pytest.hookimpl(tryfirst=True)  # before Hypothesis reads its own options
def pytest_configure(config: pytest.Config) -> None:
    """Load the profile, and draw the seed of a thorough run once, for all its workers."""
    name = config.getoption("--hypothesis-profile") or chosen_profile(os.environ)
    if name not in PROFILES:
        raise pytest.UsageError(
            f"unknown Hypothesis profile {name!r}; known: {', '.join(PROFILES)}"
        )
    settings.load_profile(name)
    config.option.hypothesis_profile = name
    if name == "thorough" and config.option.hypothesis_seed is None:
        config.option.hypothesis_seed = str(random.SystemRandom().getrandbits(32))


def chosen_profile(environment: os._Environ[str] | dict[str, str]) -> str:
    """HYPOTHESIS_PROFILE where it is set; else `ci` where CI is true; else `default`."""
    in_ci = environment.get("CI", "").lower() in {"1", "true"}
    return environment.get("HYPOTHESIS_PROFILE") or ("ci" if in_ci else "default")


def pytest_report_header(config: pytest.Config) -> str:
    """Name the profile and its seed, so that a random run can be run again."""
    seed = config.option.hypothesis_seed
    replay = f", seed {seed} (again: --hypothesis-seed={seed})" if seed is not None else ""
    return f"hypothesis profile: {config.option.hypothesis_profile}{replay}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what is marked thorough in every other profile."""
    if config.option.hypothesis_profile == "thorough":
        return
    for item in items:
        if item.get_closest_marker("thorough"):
            item.add_marker(pytest.mark.skip(reason="runs with --hypothesis-profile=thorough"))


def is_present(device: str) -> bool:
    """Whether torch can compute on the device here."""
    if device == "cpu":
        return True
    import torch  # only here, since it takes longer to import than most tests take to run

    backend = torch.cuda if device == "cuda" else torch.backends.mps
    return bool(backend.is_available())


def device_parameters(asked: str | None) -> list[object]:
    """The devices asked for; without asking those present, on asking an absent one is a skip."""
    if asked is None:
        return [device for device in DEVICES if is_present(device)]
    return [
        device
        if is_present(device)
        else pytest.param(device, marks=pytest.mark.skip(reason=f"torch sees no {device} here"))
        for device in (DEVICES if asked == "all" else (asked,))
    ]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test that has a `device` argument once per device."""
    if "device" in metafunc.fixturenames:
        metafunc.parametrize("device", device_parameters(metafunc.config.getoption("--device")))
