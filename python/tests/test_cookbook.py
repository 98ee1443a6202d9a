"""The recipes of the site: each ends with an AssertionError where what it claims does not hold."""

import pathlib
import runpy

import pytest

COOKBOOK = pathlib.Path(__file__).resolve().parents[2] / "docs" / "cookbook"
RECIPES = sorted(path.stem for path in COOKBOOK.glob("*.py") if path.stem != "recipe")


def test_there_are_recipes():
    assert RECIPES


@pytest.mark.parametrize("name", RECIPES)
def test_recipe(name, monkeypatch):
    script = COOKBOOK / f"{name}.py"
    if "mamba_cpp.torch" in script.read_text():
        pytest.importorskip("mamba_cpp.torch")
    monkeypatch.syspath_prepend(COOKBOOK)
    runpy.run_path(str(script))
