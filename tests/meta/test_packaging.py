"""What is shipped, what may import what, and the documents that repeat each other."""

import ast
import re
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hatchling.build import build_sdist, build_wheel
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.ledger import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
STANDARD = set(sys.stdlib_module_names)


def text(name: str) -> str:
    """A file of the repository."""
    return (ROOT / name).read_text(encoding="utf-8")


def pins() -> dict[str, str]:
    """The versions of constraints.txt by normalised name."""
    lines = [line for line in text("constraints.txt").splitlines() if not line.startswith("#")]
    return {canonicalize_name(n): v for n, _, v in (line.partition("==") for line in lines)}


# What is shipped ----------------------------------------------------------------------------------


def test_wheel_ships_constructions_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with zipfile.ZipFile(tmp_path / build_wheel(str(tmp_path))) as wheel:
        names = wheel.namelist()
    info = f"attention_constructions-{PROJECT['version']}.dist-info"
    assert {name.partition("/")[0] for name in names} == {"constructions", info}
    assert "constructions/py.typed" in names
    assert f"{info}/licenses/LICENSE" in names
    sources = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("constructions/**/*.py")}
    assert sources == {name for name in names if name.endswith(".py")}


COQ_OUTPUT = (".vo", ".vok", ".vos", ".glob", ".aux")


def test_sdist_carries_the_evidence_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with tarfile.open(tmp_path / build_sdist(str(tmp_path))) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    for folder in ("constructions", "theory", "tests", "docs"):
        files = {
            p.relative_to(ROOT).as_posix() for p in (ROOT / folder).rglob("*.*") if p.is_file()
        }
        built = {name for name in files if "__pycache__" in name or name.endswith(COQ_OUTPUT)}
        assert files - built <= names


# What may import what -----------------------------------------------------------------------------


def imports(path: Path) -> Iterator[str]:
    """The packages that a module imports, on import or later."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield str(node.module).partition(".")[0]


MODULES = [
    path.relative_to(ROOT).as_posix()
    for package in ("constructions", "theory")
    for path in sorted((ROOT / package).glob("**/*.py"))
]
DEMO, PLOTTING = "constructions/demo/", "constructions/plotting/"
EXTRAS = {DEMO: {"matplotlib", "numpy", "sklearn"}, PLOTTING: {"matplotlib"}}


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("constructions/")])
def test_constructions_needs_torch_alone(name: str) -> None:
    """What is imported when it is asked for may need an extra: the main job, and plotting."""
    extra = {package for room, more in EXTRAS.items() if name.startswith(room) for package in more}
    used = set(imports(ROOT / name))
    assert used <= STANDARD | {"constructions", "torch"} | extra


def test_only_the_main_job_imports_plotting() -> None:
    """On import; the door imports it when it is asked for."""
    for name in MODULES:
        if not name.startswith((DEMO, PLOTTING)):
            tree = ast.parse(text(name))
            modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
            assert not any(str(m).startswith("constructions.plotting") for m in modules), name


def test_only_the_main_job_imports_the_demo() -> None:
    package = [name for name in MODULES if name.startswith("constructions/")]
    for name in package:
        if not name.startswith((DEMO, "constructions/__main__")):
            assert "constructions.demo" not in text(name), name
    main = ast.parse(text("constructions/__main__.py"))
    on_import = {node.module for node in main.body if isinstance(node, ast.ImportFrom)}
    assert not any(str(module).startswith("constructions.demo") for module in on_import)


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("theory/")])
def test_theory_never_imports_what_it_judges(name: str) -> None:
    assert set(imports(ROOT / name)) <= STANDARD | {"theory", "sympy", "flint"}


def test_oracle_shares_code_with_neither() -> None:
    used = set(imports(ROOT / "tests" / "support" / "oracle.py"))
    assert used.isdisjoint({"constructions", "theory"})


# Documents that repeat each other -----------------------------------------------------------------


def test_constraints_pin_all_that_is_declared() -> None:
    extras = PROJECT["optional-dependencies"].values()
    declared = {
        canonicalize_name(Requirement(line).name)
        for line in [*PROJECT["dependencies"], *(line for extra in extras for line in extra)]
    }
    assert declared - {PROJECT["name"]} <= set(pins())


def test_constraints_are_exact_and_name_no_place() -> None:
    for name, version in pins().items():
        assert re.fullmatch(r"[a-z0-9-]+", name)
        assert re.fullmatch(r"[0-9.]+", version), f"{name}=={version}"


@pytest.mark.parametrize(
    "name",
    [
        requirement
        for extra in PROJECT["optional-dependencies"].values()
        for requirement in extra
        if not requirement.startswith(PROJECT["name"])
    ],
)
def test_pinned_version_meets_the_declaration(name: str) -> None:
    requirement = Requirement(name)
    assert pins()[canonicalize_name(requirement.name)] in requirement.specifier


def test_version_is_the_same_everywhere() -> None:
    version = PROJECT["version"]
    assert f"\nversion: {version}\n" in text("CITATION.cff")
    assert re.search(r"^## (\S+)", text("CHANGELOG.md"), re.MULTILINE).group(1) == version  # type: ignore[union-attr]


@pytest.mark.parametrize("command", ["ruff check .", "ruff format --check .", "mypy", "pytest"])
@pytest.mark.parametrize("name", ["CONTRIBUTING.md", ".ci/run"])
def test_contributors_and_ci_run_the_same_commands(name: str, command: str) -> None:
    assert command in [line.strip() for line in text(name).splitlines()]
