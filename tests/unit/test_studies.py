"""Every recipe and study that is shipped loads, and every cell of every study is a valid config."""

import re
from itertools import pairwise
from pathlib import Path

import pytest

from internalize.config.schema import load_config
from internalize.stages.study import configs, load_grid, shared_key

RECIPES = Path(__file__).parents[2] / "recipes"
STUDIES = sorted((RECIPES / "studies").glob("*.toml"))


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_a_recipe_loads(path: Path) -> None:
    assert load_config(path).digest


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_cell_of_a_study_is_a_config_of_its_own(path: Path) -> None:
    grid = load_grid(path)
    assert grid.question.endswith("?")
    assert len(grid.seeds) >= 3
    found = configs(grid, path)
    assert len({config.digest for config in found.values()}) == len(found), "two cells are the same"


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_the_documentation_names_it(path: Path) -> None:
    assert f"`{path.name}`" in (RECIPES.parent / "docs" / "how-to-study.md").read_text(encoding="utf-8")


def test_the_baselines_differ_in_what_they_say_and_share_their_start() -> None:
    path = RECIPES / "studies" / "baselines.toml"
    cells = {cell: config for (cell, seed), config in configs(load_grid(path), path).items() if seed == 0}
    usual, once = cells["internalization"], cells["all at once"]
    assert once.iterations == 1
    assert once.rollout.tasks == usual.iterations * usual.rollout.tasks
    assert once.distill.tasks == usual.iterations * usual.distill.tasks
    own = {"all at once", "all weights"}  # other tasks, another adapter
    assert len({shared_key(config) for cell, config in cells.items() if cell not in own}) == 1


def test_each_choice_of_the_paper_is_added_to_the_one_before() -> None:
    path = RECIPES / "studies" / "cumulative.toml"
    cells = [config for (_, seed), config in configs(load_grid(path), path).items() if seed == 0]
    added = [{re.sub(r"\..*", "", name) for name in new.changed_from(old.dump())} for old, new in pairwise(cells)]
    assert added == [{"extract"}, {"inject"}, {"distill"}]
