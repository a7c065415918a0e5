"""The package as a whole: import cost, public names, docstrings."""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import subprocess
import sys

import pytest

import sccausal

HEAVY = ("torch", "scvi", "jax", "lightning", "scanpy", "pertpy", "sklearn", "matplotlib")
LIGHT_ROOMS = ("metrics", "baselines", "pp", "tl", "pl", "datasets", "grn")


def imported_after(statement: str) -> set[str]:
    code = f"import sys, json\n{statement}\nprint(json.dumps(sorted({{m.split('.')[0] for m in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_import_brings_nothing_heavy():
    assert not imported_after("import sccausal") & {*HEAVY, "numpy", "pandas", "anndata"}


@pytest.mark.parametrize("room", LIGHT_ROOMS)
def test_rooms_without_models_do_not_import_torch(room):
    found = imported_after(f"import sccausal.{room}")
    assert not found & {"torch", "scvi", "jax", "lightning", "pertpy", "decoupler", "gseapy", "scib_metrics"}


def test_models_do_not_import_jax_or_pertpy():
    assert not imported_after("import sccausal.models") & {"pertpy", "decoupler", "gseapy", "scib_metrics"}


def modules() -> list[str]:
    found = pkgutil.walk_packages(sccausal.__path__, "sccausal.")
    return ["sccausal", *(m.name for m in found if not m.name.endswith("__main__"))]


@pytest.mark.parametrize("name", modules())
def test_all_names_resolve(name):
    module = importlib.import_module(name)
    for public in getattr(module, "__all__", ()):
        assert getattr(module, public) is not None, f"{name}.{public}"
        assert public in dir(module)


def public_objects() -> list[tuple[str, object]]:
    objects: dict[str, object] = {}
    for name in modules():
        module = importlib.import_module(name)
        for key, value in vars(module).items():
            if getattr(value, "__module__", "").startswith("sccausal") and not key.startswith("_"):
                objects[f"{value.__module__}.{key}"] = value
                if inspect.isclass(value):
                    members = {k: v for k, v in vars(value).items() if not k.startswith("_")}
                    objects.update({f"{value.__module__}.{key}.{k}": v for k, v in members.items()})
    return sorted(objects.items(), key=lambda pair: pair[0])


def test_shared_docstrings_are_filled_in():
    texts = {name: inspect.getdoc(value) or "" for name, value in public_objects()}
    assert len(texts) > 50
    left = [name for name, text in texts.items() if "%(" in text]
    assert left == []


def test_public_names_are_documented():
    missing = []
    for room in ("models", "grn", "metrics", "baselines", "datasets", "pp", "tl", "data", "train"):
        module = importlib.import_module(f"sccausal.{room}")
        for name in module.__all__:
            value = getattr(module, name)
            if (inspect.isclass(value) or inspect.isfunction(value)) and not inspect.getdoc(value):
                missing.append(f"{room}.{name}")
    assert missing == []


def test_unknown_name_of_the_package():
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = sccausal.no_such_name
