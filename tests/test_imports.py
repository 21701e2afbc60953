"""Who may import whom: rooms import only what is below them, and what is heavy stays in the rooms that use it."""

import ast
import sys
from collections import defaultdict
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEIGHTS = (  # from below; rooms of one line do not import each other
    ("zoo_kernels",),
    ("paths", "ranks", "files", "registry", "plugins", "config", "cli", "schema"),
    ("mixers", "plotting", "tables"),
    ("generation", "data"),
    ("model",),
    ("runs",),
    ("costs", "conformance"),
    ("conversion",),
    ("options",),
    ("training", "evaluation"),
    ("sweeps",),
    ("commands",),
)
BASE = HEIGHTS[1]  # modules that every program shares, and the types of options: they import each other
HEIGHT = {room: number for number, rooms in enumerate(HEIGHTS) for room in rooms}
USERS = {  # who imports what is heavy, or what not every machine has
    "lightning": {"data", "training"},
    "hydra": {"paths", "config", "options", "sweeps"},
    "datasets": {"data"},
    "wandb": {"training"},
    "transformers": {"data", "generation", "runs", "evaluation", "sweeps"},
    "tokenizers": {"data"},
    "lm_eval": {"evaluation"},
    "submitit": {"sweeps"},
    "matplotlib": {"plotting", "costs", "evaluation", "sweeps", "commands"},
    "jinja2": {"tables", "sweeps"},
}
LOW = {"zoo_kernels", "mixers"}  # these import torch, and triton lazily
PACKAGES = {"zoo": ROOT, "zoo_kernels": ROOT / "kernels", "tests": ROOT, "scripts": ROOT}
ABOVE = "zoo_kernels.bench.across"  # cases of several families, above them all: the registry loads it by its name


def sources():
    """Room and file of every module; what lies in zoo itself is a room of its own."""
    for file in sorted((ROOT / "zoo").rglob("*.py")):
        parts = file.relative_to(ROOT / "zoo").with_suffix("").parts
        yield parts[0], file
    for file in sorted((ROOT / "kernels" / "zoo_kernels").rglob("*.py")):
        yield "zoo_kernels", file


@cache
def imported(file):
    """Every module that a file imports, wherever the import stands; members of zoo by their room."""
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level and node.module, f"{file}: imports are absolute"
            found += [f"zoo.{alias.name}" for alias in node.names] if node.module == "zoo" else [node.module]
    return found


def room_of(module):
    """Room of a module of this project, None for another's."""
    package, _, rest = module.partition(".")
    if package == "zoo_kernels":
        return package
    return rest.partition(".")[0] if package == "zoo" and rest else None


def edges():
    found = defaultdict(list)
    for room, file in sources():
        for module in imported(file):
            if room != "__init__" and (other := room_of(module)) not in (None, room):
                found[room, other].append(f"{file.relative_to(ROOT)} imports {module}")
    return found


def test_rooms_import_only_what_is_below_them():
    assert {room for room, _ in sources()} - {"__init__"} == set(HEIGHT)
    upward = {pair: where for pair, where in edges().items() if not (pair[0] in BASE and pair[1] in BASE)}
    assert [where for (room, other), where in upward.items() if HEIGHT[other] >= HEIGHT[room]] == []


def test_nothing_imports_what_stands_beside_the_packages():
    """Tests and scripts are above all rooms; of the tests scripts use the random options alone."""
    aside = [
        f"{file.relative_to(ROOT)} imports {module}"
        for folder in ("zoo", "kernels", "scripts")
        for file in sorted((ROOT / folder).rglob("*.py"))
        for module in imported(file)
        if module.split(".")[0] == "scripts"
        or (module.split(".")[0] == "tests" and not (folder == "scripts" and module.startswith("tests.fuzz.")))
    ]
    assert aside == []


def modules():
    """Every module of the project by its name, with the modules and members that it imports, wherever."""
    for package, place in PACKAGES.items():
        for file in sorted((place / package).rglob("*.py")):
            name = ".".join(file.relative_to(place).with_suffix("").parts).removesuffix(".__init__")
            found = set()
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    found |= {alias.name for alias in node.names}
                elif isinstance(node, ast.ImportFrom):
                    found |= {f"{node.module}.{alias.name}" for alias in node.names}
            yield name, found


def neighbors(imports):
    """What the files and folders of each folder import of each other: a folder stands for all that is below it."""
    found = defaultdict(lambda: defaultdict(set))
    for name, targets in imports.items():
        for target in (t if t in imports else t.rpartition(".")[0] for t in targets):
            own, other = name.split("."), target.split(".")
            depth = next((n for n, (a, b) in enumerate(zip(own, other)) if a != b), None)
            if target in imports and depth is not None:
                found[".".join(own[:depth])][own[depth]].add(other[depth])
    return found


def circle(edges):
    """The first circle among some names, empty if there is none."""
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_no_files_and_no_folders_import_each_other_in_a_circle():
    imports = {name: targets for name, targets in modules() if name != ABOVE}
    assert {where: found for where, edges in neighbors(imports).items() if (found := circle(edges))} == {}


def test_a_circle_would_be_found():
    imports = {"a.b": {"a.c.d"}, "a.c.d": {"a.e.thing"}, "a.e": {"a.b"}, "a.f": {"a.b", "torch"}, "a.c.g": set()}
    assert set(circle(neighbors(imports)["a"])) == {"b", "c", "e"}
    assert circle(neighbors(imports | {"a.e": {"torch"}})["a"]) == []


@pytest.mark.parametrize("library", USERS)
def test_what_is_heavy_stays_in_the_rooms_that_use_it(library):
    users = {room for room, file in sources() if any(m.split(".")[0] == library for m in imported(file))}
    assert users == USERS[library]


def test_kernels_and_mixers_need_only_torch():
    others = {
        f"{file.relative_to(ROOT)} imports {module}"
        for room, file in sources()
        if room in LOW
        for module in imported(file)
        if module.split(".")[0] not in {*sys.stdlib_module_names, "torch", "triton", "zoo_kernels", "zoo"}
    }
    assert others == set()


def test_the_folder_of_the_kernels_is_no_package():
    """Hugging Face's package is called kernels; a package of that name here would hide it, or be hidden by it."""
    assert not (ROOT / "kernels" / "__init__.py").exists()
    assert not any(m.split(".")[0] == "kernels" for _, file in sources() for m in imported(file))
