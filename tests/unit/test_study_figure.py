"""The figure of a study: which panels, how cells are told apart, and that nothing is hidden."""

from typing import Any

import pytest

from internalize.evaluation.stats import Interval
from internalize.report import figures
from internalize.report.comparison import Comparison, Curve
from internalize.report.page import Picture
from internalize.report.study_page import study_page

pytest.importorskip("matplotlib", reason="figures need matplotlib")
CELLS = ("reference", "all of the trajectories of all earlier iterations at once, $x$ of them", *"cdefgh")


def interval(mean: float) -> Interval:
    return Interval(mean=mean, low=mean - 0.1, high=mean + 0.1, n=40)


def curve(cell: str) -> Curve:
    return Curve(
        cell=cell, seeds=2, internalized=(interval(0.2), interval(0.5)), in_context=(None, interval(0.55)), gain=None,
        context_gains=(None, interval(0.05)), retained=None, premature=(0.3, None), turns=(3.0, 4.0),
    )  # fmt: skip


@pytest.fixture(scope="module", params=[figures.STUDY_SIZE, figures.NARROW_STUDY], ids=["wide", "narrow"])
def figure(request: pytest.FixtureRequest) -> Any:
    from matplotlib.figure import Figure  # noqa: PLC0415

    made = Figure(figsize=request.param, layout="constrained")
    curves = tuple(curve(cell) for cell in CELLS)
    figures.plot_study(made, Comparison(question="?", reference="reference", curves=curves, versus=(), unfinished=()))
    made.draw_without_rendering()
    return made


def test_every_panel_says_what_it_shows_on_its_scale(figure: Any) -> None:
    assert [axes.get_title(loc="left") for axes in figure.axes] == list(figures.STUDY_TITLES)
    limits = [axes.get_ylim() for axes in figure.axes]
    assert [limits[place] for place in (0, 1, 3)] == [(0, 100)] * 3
    assert limits[2][0] <= -10 < 10 <= limits[2][1]
    assert limits[4][0] == 0
    (zero,) = (line for line in figure.axes[2].lines if list(line.get_ydata()) == [0, 0])
    assert zero.get_linewidth() == 1


def test_cells_are_told_apart_and_the_reference_is_seen(figure: Any) -> None:
    lines = [container.lines[0] for container in figure.axes[0].containers]
    assert len({(line.get_color(), line.get_linestyle(), line.get_marker()) for line in lines}) == len(CELLS)
    assert len({line.get_color() for line in lines}) == len(CELLS)
    reference, *others = (line.get_linewidth() for line in lines)
    assert reference > 1.5 * max(others)


def test_the_legend_names_every_cell_and_hides_no_panel(figure: Any) -> None:
    from matplotlib.colors import to_hex  # noqa: PLC0415

    (legend,) = figure.legends
    texts = [" ".join(text.get_text().split()) for text in legend.get_texts()]
    assert texts[:2] == ["reference (reference)", CELLS[1].replace("$", r"\$")]
    drawn = {to_hex(text.get_color()) for text in legend.get_texts()}
    assert drawn == {figures.INK}, "dark pages draw ink in a light colour"
    box = legend.get_window_extent()
    assert not any(axes.get_tightbbox().overlaps(box) for axes in figure.axes)


def test_a_study_without_measurements_has_no_figure() -> None:
    empty = Comparison(question="?", reference="a", curves=(), versus=(), unfinished=())
    page = study_page(empty)
    assert not any(isinstance(part, Picture) for section in page.sections for part in section.parts)
