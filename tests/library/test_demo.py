"""The main job: `python -m constructions` and what it prints, draws and returns."""

import contextlib
import copy
import io
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread
from torch import Tensor, nn

from constructions import convert, plotting
from constructions.__main__ import main, parser
from constructions.certificate import Certificate
from constructions.demo import job, network, report
from constructions.layer.attention import MultiHeadSelfAttention
from tests.support.ledger import ROOT

IMAGES = 450
LAYERS = {
    "first": ("3x3", 9),
    "strided": ("3x3 stride 2", 9),
    "dilated": ("3x3 dilation 2 groups 4", 9),
    "even": ("2x2", 4),
}


@dataclass(frozen=True)
class Run:
    """What a run of the main job left."""

    code: int
    output: str
    folder: Path

    def stable(self) -> str:
        """What it printed, without what a second run may change."""
        lines = self.output.replace(str(self.folder), "DIR").splitlines()
        return "\n".join(line for line in lines if not line.startswith("Time:"))

    def table(self) -> dict[str, dict[str, str]]:
        """The cells of the table, by layer and column; inverse of `report.row`."""
        lines = self.output.splitlines()
        start = lines.index(report.row(*report.COLUMNS)) + 1
        rows = [split_row(line) for line in lines[start : start + len(LAYERS)]]
        return {row["layer"]: row for row in rows}

    def find(self, pattern: str) -> tuple[str, ...]:
        """The groups of a pattern that occurs just once."""
        (groups,) = re.findall(pattern, self.output, re.MULTILINE)
        return groups if isinstance(groups, tuple) else (groups,)


def split_row(line: str) -> dict[str, str]:
    cells, start = {}, 0
    for name, width in report.COLUMNS.items():
        cells[name] = line[start : start + width].strip()
        start += width + 2
    return cells


def run_job(folder: Path, *arguments: str) -> Run:
    with contextlib.redirect_stdout(io.StringIO()) as output:
        code = main(["--output", str(folder), *arguments])
    return Run(code, output.getvalue(), folder)


@pytest.fixture(scope="module")
def run_and_network(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, nn.Sequential]:
    kept = []

    def train(digits: network.Digits, progress: Callable[[int, float], object]) -> nn.Sequential:
        cnn = network.train(digits, progress)
        kept.append(copy.deepcopy(cnn))
        return cnn

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "train", train)
        run = run_job(tmp_path_factory.mktemp("default"))
    (cnn,) = kept
    return run, cnn


@pytest.fixture(scope="module")
def default_run(run_and_network: tuple[Run, nn.Sequential]) -> Run:
    return run_and_network[0]


@pytest.fixture(scope="module")
def trained(run_and_network: tuple[Run, nn.Sequential]) -> nn.Sequential:
    return run_and_network[1]


@pytest.fixture
def _no_training(monkeypatch: pytest.MonkeyPatch, trained: nn.Sequential) -> None:
    monkeypatch.setattr(job, "train", lambda digits, progress: copy.deepcopy(trained))


# The job ------------------------------------------------------------------------------------------


def test_job_succeeds_and_says_so(default_run: Run) -> None:
    assert default_run.code == 0
    assert default_run.output.endswith("Every error is within its bound.\n")


def test_job_shows_its_progress(default_run: Run) -> None:
    epochs = re.findall(r"epoch +(\d+) of (\d+): loss \d", default_run.output)
    assert epochs
    assert epochs[-1] == (str(network.EPOCHS), str(network.EPOCHS))


def test_both_networks_classify_97_percent_of_the_test_images(default_run: Run) -> None:
    pattern = rf"CNN [\d.]+ % \((\d+) of {IMAGES}\), attention [\d.]+ % \((\d+) of {IMAGES}\)"
    for correct in default_run.find(pattern):
        assert int(correct) >= 0.97 * IMAGES


def test_saturated_network_predicts_what_the_cnn_predicts(default_run: Run) -> None:
    assert default_run.find(r"equal predictions +(\d+) of (\d+), (\d+) changed") == (
        str(IMAGES),
        str(IMAGES),
        "0",
    )


def test_job_ends_with_what_the_layers_say_of_the_logits(default_run: Run) -> None:
    difference = float(default_run.find(r"largest difference +(\S+) of a logit, observed")[0])
    estimate = float(default_run.find(r"to first order +(\S+), an estimate")[0])
    bound = float(default_run.find(r"^bound +(\S+), from bounds of layers$")[0])
    assert 0 < difference < bound
    assert 0 < estimate < bound


def test_table_has_a_row_for_every_convolution(default_run: Run) -> None:
    table = default_run.table()
    assert {name: (row["kernel"], int(row["heads"])) for name, row in table.items()} == LAYERS


def test_saturated_heads_are_one_hot_and_leak_nothing(default_run: Run) -> None:
    for row in default_run.table().values():
        assert row["one-hot"] == "yes"
        assert float(row["= leak"]) == 0
        assert row["+ round."] == row["bound"]
        assert 0 < float(row["max error"]) <= float(row["bound"])
        assert 0 < float(row["ratio"]) <= 1


def test_lines_fit_into_100_columns_of_ascii(default_run: Run) -> None:
    lines = default_run.stable().splitlines()
    assert max(map(len, lines)) <= 100
    assert default_run.output.isascii()


def test_second_run_gives_the_same_numbers_on_any_number_of_threads(
    default_run: Run, tmp_path: Path
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        torch.manual_seed(1)
        state = torch.get_rng_state()
        second = run_job(tmp_path)
        assert torch.get_num_threads() == before + 1
        assert torch.equal(torch.get_rng_state(), state)
    finally:
        torch.set_num_threads(before)
    assert second.stable() == default_run.stable()


@pytest.mark.usefixtures("_no_training")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_every_format_is_certified(device: str, dtype: str, tmp_path: Path) -> None:
    if device == "mps" and dtype == "float64":
        pytest.skip("mps has no float64")
    run = run_job(tmp_path, "--device", device, "--dtype", dtype)
    assert run.code == 0
    assert f"{dtype} on {device}" in run.output
    assert {row["one-hot"] for row in run.table().values()} == {"yes"}
    assert bool(re.search("^bound +.*from bounds of layers", run.output, re.MULTILINE)) is (
        dtype == "float64" and device == "cpu"
    )


@pytest.mark.usefixtures("_no_training")
def test_weak_sharpness_is_reported_honestly(tmp_path: Path) -> None:
    run = run_job(tmp_path, "--sharpness", "1", "--evaluation", "auto")
    assert run.code == 0
    assert "factored attention, sharpness 1," in run.output
    for row in run.table().values():
        assert row["one-hot"].startswith("no, ")
        assert 0 < float(row["max error"]) <= float(row["bound"])
        assert float(row["= leak"]) > float(row["+ round."])
    equal, changed = run.find(rf"equal predictions +(\d+) of {IMAGES}, (\d+) changed")
    assert int(equal) + int(changed) == IMAGES
    assert int(changed) > 0
    tightest, median = run.find(r"bound is ([\d.]+) times .* tightest, and ([\d.]+) times .*median")
    assert 1 <= float(tightest) < float(median)


# Wrong networks -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("_no_training")
def test_swapped_heads_exceed_the_bound_and_fail_the_job(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def with_swapped_heads(cnn: nn.Module, **options: Any) -> nn.Module:
        attention: nn.Module = convert(cnn, **options)
        layer = attention.get_submodule("dilated")
        assert isinstance(layer, MultiHeadSelfAttention)
        with torch.no_grad():
            layer.positional_shift.copy_(layer.positional_shift.flip(0))
        return attention

    monkeypatch.setattr(job, "convert", with_swapped_heads)
    run = run_job(tmp_path)
    assert run.code == 1
    assert run.output.endswith("FAILED: an error exceeds its bound in dilated.\n")
    assert float(run.table()["dilated"]["ratio"]) > 1


# The report ---------------------------------------------------------------------------------------


def test_shapes_are_those_of_what_the_layers_receive(trained: nn.Sequential) -> None:
    attention = convert(trained)
    images = network.Digits.split(0).test_images
    shapes = report.spatial_shapes(attention, images[:1])
    assert shapes == {"first": (8, 8), "strided": (8, 8), "dilated": (4, 4), "even": (4, 4)}
    assert not any(module._forward_pre_hooks for module in attention.modules())


def test_summary_says_where_a_bound_is_infinite() -> None:
    conv = nn.Conv2d(1, 1, 1)
    layer = convert(conv)
    assert isinstance(layer, MultiHeadSelfAttention)
    error, rounding = torch.tensor([1.0, 3.0, 0.0]), torch.tensor([4.0, torch.inf, 1.0])
    certificate = Certificate(error, torch.zeros(3), rounding, torch.zeros(3))
    summary = report.summary([report.LayerReport("only", conv, layer, (2, 2), certificate)])
    assert "bound is 4 times the error where it is tightest" in summary
    assert "At 1 outputs sums may overflow: the bound is inf, and says nothing." in summary


def test_split_is_stratified_and_drawn_by_the_seed() -> None:
    digits, other = network.Digits.split(0), network.Digits.split(1)
    assert len(digits.test_labels) == IMAGES
    total = digits.training_labels.bincount() + digits.test_labels.bincount()
    assert int(total.sum()) == 1797
    rounded = (digits.test_labels.bincount() - total * IMAGES / 1797).abs()
    assert bool((rounded < 1).all())
    assert not torch.equal(digits.test_images, other.test_images)


# The figure ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["drawn", "committed"])
def picture(request: pytest.FixtureRequest, default_run: Run) -> Path:
    folder = default_run.folder if request.param == "drawn" else ROOT / "docs" / "figures"
    return folder / "heads.png"


def test_figure_is_a_small_picture_with_something_on_it(picture: Path) -> None:
    assert picture.stat().st_size < 150_000
    pixels = imread(picture)
    height, width, _ = pixels.shape
    assert (height, width) == (756, 1200)
    assert pixels.std() > 0


@pytest.mark.usefixtures("_no_training")
def test_figure_shows_the_heads_of_the_first_layer_on_a_test_image(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    drawn = []

    def note(layer: MultiHeadSelfAttention, image: Tensor, *, figure: Figure) -> Figure:
        assert plotting.heads(layer, image, figure=figure) is figure
        drawn.append((layer, image, figure))
        return figure

    monkeypatch.setattr(job, "heads", note)
    run = run_job(tmp_path)
    ((layer, image, figure),) = drawn
    assert layer.num_heads == LAYERS["first"][1]
    assert torch.equal(image, network.Digits.split(0).test_images[0])
    titles = [axes.get_title() for axes in figure.axes]
    assert [f"head {head}" for head in range(layer.num_heads)] == titles[-layer.num_heads :]
    assert 'layer "first" of a trained CNN' in figure.get_suptitle()
    assert imread(run.folder / "heads.png").shape[:2] == (756, 1200)


# The command line ---------------------------------------------------------------------------------


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    for option in options():
        assert option in shown


def options() -> Iterator[str]:
    for action in parser()._actions:
        yield action.option_strings[-1]


@pytest.mark.parametrize(
    ("argument", "value", "accepted"),
    [
        ("--device", "abacus", "accepted here: cpu"),
        ("--dtype", "int8", "float16"),
        ("--sharpness", "0", "a positive, finite number"),
        ("--sharpness", "-1", "a positive, finite number"),
        ("--sharpness", "inf", "a positive, finite number"),
        ("--sharpness", "nan", "a positive, finite number"),
        ("--sharpness", "sharp", "a positive, finite number"),
        ("--evaluation", "guessed", "dense"),
        ("--output", __file__, "a folder"),
        ("--seed", "-1", "an integer from 0 to 4294967295"),
        ("--seed", "4294967296", "an integer from 0 to 4294967295"),
        ("--seed", "1.5", "an integer from 0 to 4294967295"),
    ],
)
def test_bad_argument_is_one_line_with_argument_value_and_what_is_accepted(
    argument: str, value: str, accepted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([argument, value])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"python -m constructions: error: argument {argument}: ")
    assert repr(value) in line
    assert accepted in line


@pytest.mark.parametrize(
    ("module", "package"), [("sklearn", "scikit-learn"), ("matplotlib", "matplotlib")]
)
def test_missing_dependency_is_one_line_that_tells_what_to_install(
    module: str,
    package: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("demo.job", "demo.network", "demo.report", "plotting", "plotting.drawing"):
        monkeypatch.delitem(sys.modules, f"constructions.{name}")
    for name in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SystemExit) as ended:
        main(["--output", str(tmp_path)])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{package} is not installed" in line
    assert "pip install 'attention-constructions[demo]'" in line


# The page -----------------------------------------------------------------------------------------


def test_page_explains_every_column_and_option() -> None:
    page = (ROOT / "docs" / "main-job.md").read_text(encoding="utf-8")
    for name in [*report.COLUMNS, *options()]:
        if name != "--help":
            assert f"`{name}" in page or f" {name} " in page, name
