"""Every exercise's test fails with the function as it is, and passes with the solution's."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[1] / "docs" / "exercises"
NAMES = sorted(path.stem for path in FOLDER.glob("e*.py"))


def load(path: Path) -> ModuleType:
    """The module in a file, a fresh one at each call."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_tests(module: ModuleType) -> list[str]:
    """Runs the module's tests; the names of those that fail, with an assertion or an error."""
    failed = []
    for name, test in vars(module).items():
        if name.startswith("test_"):
            try:
                test()
            except Exception:  # the hole may raise anything
                failed.append(name)
    return failed


def test_there_are_eight_each_with_a_line_and_a_solution() -> None:
    assert [name[:2] for name in NAMES] == [f"e{number}" for number in range(1, 9)]
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("| `e")]
    assert [line.split("`")[1] for line in lines] == [f"{name}.py" for name in NAMES]
    assert sorted(path.stem for path in (FOLDER / "solutions").glob("*.py")) == NAMES
    for line in lines:  # the last column's files are there
        for place in line.split("|")[-2].split("`")[1::2]:
            assert not place.endswith(".py") or (FOLDER.parents[1] / place).is_file(), place


@pytest.mark.parametrize("name", NAMES)
def test_an_exercise_fails_as_it_is_and_passes_solved(name: str) -> None:
    exercise, solution = load(FOLDER / f"{name}.py"), load(FOLDER / "solutions" / f"{name}.py")
    tests = [name for name in vars(exercise) if name.startswith("test_")]
    assert tests and run_tests(exercise), "the test passes with the hole"
    own = [n for n, value in vars(solution).items() if getattr(value, "__module__", "") == name]
    public = [name for name in own if not name.startswith("_")]
    assert len(public) == 1 and hasattr(exercise, public[0])
    setattr(exercise, public[0], getattr(solution, public[0]))
    assert run_tests(exercise) == []
