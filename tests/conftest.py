"""Hypothesis profiles, and the devices that tests run on."""

import os
import random
import warnings

import pytest
from hypothesis import HealthCheck, settings

# Read once, when torch is imported. The tensors are small, and a second thread only waits (seen:
# three times as slow); besides, the workers of pytest-xdist fill the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

PROFILES = {
    # Deadlines and "too slow" measure the machine and its neighbours, not the code. In CI,
    # Hypothesis starts from settings of its own, so `derandomize` is said here too.
    "default": settings(
        max_examples=27,
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
    """Add `--device`, and what a GPU may do (docs/on-a-gpu.md)."""
    parser.addoption(
        "--device",
        choices=[*DEVICES, "all"],
        help="devices that tests with a `device` argument run on (default: all that are here)",
    )
    parser.addoption(
        "--tf32",
        choices=["on", "off"],
        help="whether a GPU may round float32 operands to TF32 (default: as torch has it)",
    )
    parser.addoption(
        "--deterministic", action="store_true", help="ask torch for deterministic algorithms"
    )
    parser.addoption(
        "--no-cudnn",
        action="store_true",
        help="convolutions as products of matrices: plain sums, where cuDNN may take Winograd's",
    )
    parser.addoption(
        "--formal",
        action="store_true",
        help="run what Coq checks, and nothing else (docs/formal.md)",
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
    set_flags(
        tf32=config.getoption("--tf32"),
        deterministic=config.getoption("--deterministic"),
        cudnn=not config.getoption("--no-cudnn"),
    )
    if config.getoption("--deterministic"):
        # Where there is none, torch says so and goes on.
        without = "ignore:.* does not have a deterministic implementation:UserWarning"
        config.addinivalue_line("filterwarnings", without)


def set_flags(*, tf32: str | None, deterministic: bool, cudnn: bool) -> None:
    """Tell torch, in this process, what the options say; without options torch is not imported."""
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read with the first product
    if tf32 is None and not deterministic and cudnn:
        return
    import torch

    if tf32 is not None:
        with warnings.catch_warnings():
            # The older flags, since torch still asks them itself, and setting them sets the newer.
            warnings.simplefilter("ignore")
            torch.backends.cuda.matmul.allow_tf32 = tf32 == "on"
            torch.backends.cudnn.allow_tf32 = tf32 == "on"
    if deterministic:
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.enabled = cudnn


def chosen_profile(environment: os._Environ[str] | dict[str, str]) -> str:
    """HYPOTHESIS_PROFILE where it is set; else `ci` where CI is true; else `default`."""
    in_ci = environment.get("CI", "").lower() in {"1", "true"}
    return environment.get("HYPOTHESIS_PROFILE") or ("ci" if in_ci else "default")


def pytest_report_header(config: pytest.Config) -> str:
    """Name the profile and its seed, so that a random run can be run again."""
    seed = config.option.hypothesis_seed
    replay = f", seed {seed} (again: --hypothesis-seed={seed})" if seed is not None else ""
    return f"hypothesis profile: {config.option.hypothesis_profile}{replay}"


def is_formal(item: pytest.Item) -> bool:
    """Whether Coq is what decides the test."""
    evidence = any("formal" in mark.args for mark in item.iter_markers("evidence"))
    return evidence or item.get_closest_marker("formal") is not None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what Coq decides, or all else; skip what is marked thorough in other profiles."""
    left_out = [item for item in items if is_formal(item) != config.option.formal]
    items[:] = [item for item in items if is_formal(item) == config.option.formal]
    config.hook.pytest_deselected(items=left_out)
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


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """FlexAttention as it is without a compiler: the same function, with all scores in memory."""
    from torch.nn.attention.flex_attention import flex_attention

    from constructions.evaluation import flex

    monkeypatch.setattr(flex, "kernel", lambda: flex_attention)
