"""The surface and the direction of dependencies."""

import ast
import dataclasses
import importlib
import importlib.util
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import quickdecode
import quickprefill

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = [quickdecode, quickprefill]
README = (ROOT / "README.md").read_text()
GUIDES = sorted((ROOT / "examples" / "guides").glob("*.md"))
ROOMS = {
    "quickdecode": [
        "errors",
        "threads",
        "source",
        "index",
        "plan",
        "decode",
        "decoded",
        "opening",
        "read",
        "stream",
        "reader",
        "lazy",
        "hosts",
    ],
    "quickprefill": [
        *("errors", "settings", "late", "release", "versions", "prompt", "cache", "attention", "policies", "lvu"),
        *(
            "config",
            "spread",
            "reporting",
            "hosts",
            "fits",
            "weights",
            "budget",
            "loop",
            "patch",
            "targets",
            "applying",
            "estimating",
            "adapters",
            "callback",
        ),
        *("activation", "auto", "run", "hook", "integrations"),
    ],
}
"""Package -> its folders and the modules beside them, from bottom to top; the package's own __init__ is above all."""


def modules(package):
    names = [package.__name__]
    names += [info.name for info in pkgutil.walk_packages(package.__path__, package.__name__ + ".")]
    return [importlib.import_module(name) if name not in PATCH_WHEN_IMPORTED else unloaded(name) for name in names]


PATCH_WHEN_IMPORTED = ["quickprefill.auto"]


def unloaded(name):
    """A module as it is before its code runs."""
    return importlib.util.module_from_spec(importlib.util.find_spec(name))


def imports(module):
    """Full names of the modules that a module imports, anywhere in it."""
    package = module.__name__ if hasattr(module, "__path__") else module.__name__.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(Path(module.__file__).read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.rsplit(".", node.level - 1)[0] if node.level else ""
            base = ".".join(filter(None, [base, node.module]))
            names = {f"{base}.{alias.name}" for alias in node.names}
            found |= {name if name in sys.modules else base for name in names}  # `from package import module`
    return found


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_exported_names_are_sorted_and_exist(package):
    for module in modules(package):
        names = getattr(module, "__all__", None)
        if names is None:
            continue
        assert all(hasattr(module, name) for name in names), module.__name__
        constants = [name for name in names if name.isupper()]
        classes = [name for name in names if name not in constants and not name.islower() and name[0].isupper()]
        rest = [name for name in names if name not in constants and name not in classes]
        assert list(names) == sorted(constants) + sorted(classes) + sorted(rest), module.__name__


def test_public_names():
    assert set(quickprefill.__all__) >= {
        *("apply", "remove", "patched", "QuickPrefillConfig", "POLICIES", "FAMILIES", "__version__")
    }
    assert set(quickdecode.__all__) >= {"probe", "read_video", "register", "unregister", "QuickDecodeError"}
    assert list(quickprefill.POLICIES) == sorted(quickprefill.POLICIES)
    assert list(quickprefill.FAMILIES) == sorted(quickprefill.FAMILIES)


def test_version_is_the_newest_in_the_changelog():
    newest = re.search(r"^## (\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest.group(1) == quickprefill.__version__


def test_the_packages_do_not_import_each_other():
    for package, other in [(quickprefill, "quickdecode"), (quickdecode, "quickprefill")]:
        for module in modules(package):
            if module.__name__ in DOORS:
                continue
            assert not any(name.split(".")[0] == other for name in imports(module)), module.__name__


DOORS = ["quickprefill.activation", "quickprefill.integrations.lmms_eval"]
"""What a launcher, a plugin flag or another program's entry point starts, for both packages."""


def test_policies_never_see_a_model_and_families_never_a_policy():
    for module in modules(quickprefill):
        if module.__name__.startswith("quickprefill.policies"):
            assert not any("hosts" in name or name.startswith("transformers") for name in imports(module))
        if module.__name__.startswith("quickprefill.hosts"):
            assert not any("policies" in name for name in imports(module))


def test_facts_about_a_host_stay_in_its_family_file():
    facts = re.compile(r"\b(language_model|get_video_features|get_image_features|video_grid_thw|lm_head|rope_deltas)\b")
    for path in (ROOT / "quickprefill").rglob("*.py"):
        if path.parent.name == "hosts" or path.name == "versions.py":
            continue
        code = ast.unparse(without_docstrings(ast.parse(path.read_text())))
        code = re.sub(r"""(['"]).*?\1""", "", code)  # messages may name them
        assert not facts.search(code), path


def without_docstrings(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            node.value = ast.Constant(value=None)
    return tree


def test_no_import_cycles():
    for package in PACKAGES:
        loaded = {module.__name__: module for module in modules(package)}
        edges = {name: {other for other in imports(module) if other in loaded} for name, module in loaded.items()}
        edges = {name: others for name, others in edges.items() if not hasattr(loaded[name], "__path__")}

        def visit(name, path, edges=edges):
            assert name not in path, " -> ".join([*path, name])
            for other in edges.get(name, ()):
                visit(other, [*path, name])

        for name in edges:
            visit(name, [])


@pytest.mark.parametrize("package", ROOMS)
def test_rooms_import_only_from_below(package):
    rooms = ROOMS[package]
    loaded = modules(importlib.import_module(package))

    def room(name):
        return name.split(".")[1] if "." in name else None

    assert {room(module.__name__) for module in loaded} == {*rooms, None}
    heights = {name: height for height, name in enumerate([*rooms, None])}
    for module in loaded:
        for other in sorted(imports(module)):
            if other.split(".")[0] == package:
                below = heights[room(other)] <= heights[room(module.__name__)]
                assert below, f"{module.__name__} imports {other}, which is above it"


def test_importing_changes_nothing():
    """No host module is altered, no attribute of the model classes, no reader registered."""
    script = """
import importlib
import transformers.cache_utils, qwen_vl_utils.vision_process as reader
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as host
watched = [reader, host, transformers.cache_utils, *(v for v in vars(host).values() if isinstance(v, type))]
before = [dict(vars(space)) for space in watched]
readers = dict(reader.VIDEO_READER_BACKENDS)
for name in ("quickprefill", "quickdecode"):
    importlib.import_module(name)
    assert [dict(vars(space)) for space in watched] == before, name
    assert readers == reader.VIDEO_READER_BACKENDS, name
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT, timeout=120)


def tree_entries(block):
    """Folder -> what its entry says, its nested lines included; "" -> the entries of files outside any folder."""
    said, folder = {"": ""}, ""
    for line in block.splitlines()[1:]:
        if entry := re.match(r" {4}(\w+)(/|\.py)(?!\S)", line):
            folder = entry[1] if entry[2] == "/" else ""
        said[folder] = said.get(folder, "") + line + "\n"
    return said


def test_readme_tree_is_true():
    """Every file of the packages stands in README's tree, under its own folder, and nothing else."""
    tree = README.split("## The tree")[1].split("```")[1]
    for package in PACKAGES:
        root = ROOT / package.__name__
        start = tree.index(f"\n{package.__name__}/")
        block = re.split(r"\n(?=\S)", tree[start + 1 :])[0]
        said = tree_entries(block)
        assert set(said) - {""} == {path.name for path in root.iterdir() if (path / "__init__.py").exists()}
        folders = set(re.findall(r"\b(\w+)/", block)) - {package.__name__}
        assert folders == {path.parent.name for path in root.rglob("*/__init__.py")}
        for folder, text in said.items():
            named = re.findall(r"\b\w+\.py\b", text)
            files = {path.name for path in ((root / folder).rglob("*.py") if folder else root.glob("*.py"))}
            policies = {f"{policy}.py" for policy in quickprefill.POLICIES}  # a table of their own names these
            optional = {"__init__.py", *policies} if folder else set()
            assert files - optional <= set(named), f"missing in the tree: {folder} {files - optional - set(named)}"
            assert set(named) <= files, f"in the tree only: {folder} {set(named) - files}"
            assert len(named) == len(set(named)), f"named twice: {folder} {named}"


def tables(text):
    """The tables of a page, each as its rows below the header, each row as its cells."""
    found, previous = [], ""
    for line in re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL).splitlines():
        if re.fullmatch(r"\|[-:| ]+\|", line) and previous.startswith("|"):
            found.append([])
        elif line.startswith("|") and previous.startswith("|"):
            found[-1].append([cell.strip() for cell in line.strip("|").split("|")])
        previous = line
    return found


def linked_files(page):
    """The files that a page links to, as they stand in its links and where those lead from its folder."""
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)(?:#[^)]*)?\)", page.read_text())
    return {link: (page.parent / link).resolve() for link in links}


def test_tables_are_found_with_their_rows():
    text = "| a | b |\n|---|---|\n| 1 | 2 |\n| 3 | |\ntext\n| c |\n|---|\n```\n| in | code |\n|---|---|\n| 5 |\n```\n"
    assert tables(text) == [[["1", "2"], ["3", ""]], []]


def test_readme_names_every_policy_and_field():
    """In README or a guide each policy has its row, with a link to its file, and each field of the config its own."""
    pages = [ROOT / "README.md", *GUIDES]
    rows = [(page, row) for page in pages for table in tables(page.read_text()) for row in table]
    linked = {}
    for page, row in rows:
        link = re.fullmatch(r"\[`(\w+)`\]\(([^)]+)\)", row[0])
        if link is not None and "quickprefill/policies/" in link[2]:
            linked[link[1]] = (page.parent / link[2]).resolve()
    assert linked == {policy: ROOT / "quickprefill" / "policies" / f"{policy}.py" for policy in quickprefill.POLICIES}
    first = {row[0] for _, row in rows}
    for field in dataclasses.fields(quickprefill.QuickPrefillConfig):
        assert f"`{field.name}`" in first, field.name


def test_readme_has_no_long_table():
    """Long ones stand in the guides."""
    lengths = [len(table) for table in tables(README)]
    assert len(lengths) > 1
    assert max(lengths) <= 8


def test_readme_links_to_every_guide():
    assert set(GUIDES) <= set(linked_files(ROOT / "README.md").values())


def test_ci_takes_its_commands_from_readme():
    lines = README.splitlines()
    assert sum("&& python -m pytest -n 2" in line for line in lines) == 1
    assert sum(line.endswith("&& python examples/quickstart.py") for line in lines) == 1


@pytest.mark.parametrize("page", [ROOT / "README.md", *GUIDES], ids=lambda page: page.name)
def test_readme_links_exist(page):
    for link, target in linked_files(page).items():
        assert target.exists(), link


@pytest.mark.parametrize("page", [ROOT / "README.md", *GUIDES], ids=lambda page: page.name)
def test_readme_links_to_sections_exist(page):
    for path, section in re.findall(r"\]\((?!https?:)([^)#]*)#([^)]+)\)", page.read_text()):
        text = ((page.parent / path) if path else page).read_text()
        titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
        assert section in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}, section
