"""Every public function and class has an example, and examples give what they say."""

from __future__ import annotations

import doctest
import inspect
import re
import warnings
from importlib import import_module
from typing import Any

import matplotlib.pyplot as plt
import pytest
from doc_names import names_for

ROOMS = ("baselines", "benchmark", "data", "datasets", "grn", "metrics", "models", "nn", "pl", "pp", "tl", "train")
GENERATED = {"data.MuDataInterventionField"}  # made by a wrapper of scvi-tools
INHERITED = {"train.CausalTrainRunner"}  # takes the arguments of its class in scvi-tools


def _public() -> dict[str, Any]:
    found = {}
    for room in ROOMS:
        module = import_module(f"sccausal.{room}")
        for name in module.__all__:
            value = getattr(module, name)
            if inspect.isroutine(value) or inspect.isclass(value):
                found[f"{room}.{name}"] = value
    return {name: value for name, value in found.items() if name not in GENERATED}


PUBLIC = _public()
FINDER = doctest.DocTestFinder(exclude_empty=True)


def _examples(name: str) -> list[doctest.DocTest]:
    """Examples of a function, or of a class and its public methods."""
    found = [test for test in FINDER.find(PUBLIC[name], name, module=False, globs={}) if test.examples]
    return [test for test in found if not test.name.removeprefix(name).startswith("._")]


@pytest.mark.parametrize("name", PUBLIC)
def test_docstring_has_an_example(name):
    tests = FINDER.find(PUBLIC[name], name, module=False, globs={})
    own = next((test for test in tests if test.name == name), None)
    assert own is not None and own.examples, f"the docstring of sccausal.{name} has no example"
    assert "\nExamples\n--------\n" in inspect.cleandoc(PUBLIC[name].__doc__), f"sccausal.{name}: no section Examples"


@pytest.mark.parametrize("name", [name for name in PUBLIC if _examples(name)])
def test_example_gives_what_it_says(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # some examples write files
    for test in _examples(name):
        test.globs.update(names_for(name, test.docstring))
        said: list[str] = []
        runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            runner.run(test, out=said.append)
        plt.close("all")
        assert runner.failures == 0, "".join(said)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_argument_is_described(name):
    value = PUBLIC[name]
    if name in INHERITED or (inspect.isclass(value) and issubclass(value, BaseException)):
        return
    arguments = set(inspect.signature(value).parameters)
    described = {
        word.strip().lstrip("*")
        for section in ("Parameters", "Attributes")
        for line in _section(inspect.cleandoc(value.__doc__), section)
        if line and not line.startswith(" ")
        for word in line.split(",")
    }
    assert arguments - described == set(), f"sccausal.{name} says nothing about these arguments"


def _section(doc: str, title: str) -> list[str]:
    """Lines of a section of a numpydoc docstring."""
    found = re.search(rf"^{title}\n-+\n(.*?)(?=^\w[\w ]+\n-{{3,}}$|\Z)", doc, flags=re.S | re.M)
    return found[1].rstrip().splitlines() if found else []
