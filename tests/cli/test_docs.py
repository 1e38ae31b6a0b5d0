"""The documents say what the program does: pages, commands, links, run files and names are compared with it."""

import importlib.util
import inspect
import re
import shlex
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
import yaml

from sst_merge import adapter_config, errors, safety_tax
from sst_merge.cli import app
from sst_merge.config import RunConfig, TrainConfig
from sst_merge.methods import METHODS
from sst_merge.rendering.page import FLAG_NOTES
from sst_merge.run_file import load_config, validate
from sst_merge.run_folder import RunFolder
from sst_merge.tasks import TASKS

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
PROGRAM: Any = typer.main.get_command(app)


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)


def command_of(path: Path) -> str:
    """The command in the first line of a run file, without the remark in parentheses behind it."""
    return path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ").partition(" (")[0]


def shown_commands() -> list[str]:
    """Every command line in a ``sh`` block, and the first line of every run file."""
    found = []
    for path in PAGES:
        for block in blocks(path.read_text(encoding="utf-8"), "sh"):
            found += block.replace("\\\n", " ").splitlines()
    found += [command_of(path) for path in CONFIGS]
    return sorted({line.partition(" #")[0].strip() for line in found} - {""})


def anchors(page: str) -> set[str]:
    """Anchors of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", page, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_pages_are_what_the_code_says(generate: ModuleType) -> None:
    assert sorted(generate.stale_pages()) == [], "run: make docs"


def test_a_stale_a_missing_and_a_superfluous_page_are_named(
    generate: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate, "FOLDER", tmp_path)
    for name in generate.PAGES:
        (tmp_path / name).write_text(text(f"docs/reference/{name}"), encoding="utf-8")
    (tmp_path / "cli.md").write_text("old\n", encoding="utf-8")
    (tmp_path / "tasks.md").unlink()
    (tmp_path / "gone.md").write_text("no source\n", encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["generate.py", "--check"])
    with pytest.raises(SystemExit, match=r"stale: docs/reference/cli\.md, docs/reference/gone\.md, docs/reference/tas"):
        generate.main()
    assert (tmp_path / "cli.md").read_text(encoding="utf-8") == "old\n"
    monkeypatch.setattr("sys.argv", ["generate.py"])
    generate.main()
    assert generate.stale_pages() == {}


def test_the_reference_pages_do_not_depend_on_the_terminal(
    generate: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"COLUMNS": "40", "TERMINAL_WIDTH": "40", "FORCE_COLOR": "1", "LINES": "10"}.items():
        monkeypatch.setenv(name, value)
    assert sorted(generate.stale_pages()) == []


@pytest.mark.parametrize("command", sorted(PROGRAM.commands))
def test_every_command_is_documented(command: str) -> None:
    assert f"`sst-merge {command}`" in text("docs/index.md")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_documented(method: str) -> None:
    assert f"`{method}`" in text("docs/method.md")


@pytest.mark.parametrize("task", TASKS)
def test_every_task_is_documented(task: str) -> None:
    assert f"`{task}`" in text("docs/measurement.md")


def test_every_verdict_and_flag_is_documented() -> None:
    code = inspect.getsource(safety_tax._code)
    verdicts = set(re.findall(r'"([A-Z]{2,}[A-Z_]*)"', code))
    assert {"TAX", "NO_DETECTABLE_GAIN", "INVALID_WEIGHTS"} <= verdicts
    page = text("docs/measurement.md")
    assert [name for name in sorted(verdicts | FLAG_NOTES.keys()) if f"`{name}`" not in page] == []
    readme = text("README.md")
    assert [name for name in sorted(verdicts) if not name.startswith("INVALID_") and f"`{name}`" not in readme] == []


def test_every_file_of_a_run_folder_every_refused_field_and_every_exit_code_is_documented() -> None:
    page = text("docs/formats.md")
    folder = RunFolder(Path("run"))
    names = {
        value.name for name in dir(RunFolder) if isinstance(value := getattr(folder, name), Path) and name != "path"
    }
    assert {"manifest.json", "statistics", "adapter"} <= names
    assert [name for name in sorted(names) if name not in page] == []
    assert [field for field in adapter_config.REFUSED if f"`{field}`" not in page] == []
    assert [start for start in adapter_config.REFUSED_INITIALISATIONS if f"`{start}`" not in page] == []
    used = {kind.exit_code for kind in vars(errors).values() if isinstance(kind, type)}
    assert [code for code in sorted({0, 2, *used}) if f"| {code} |" not in page and f"Code {code} " not in page] == []


def test_the_index_names_every_decision_and_every_result() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    pages = [*(ROOT / "docs" / "decisions").glob("*.md"), *(ROOT / "docs" / "results").glob("*.md")]
    assert len(pages) > 10
    assert [path.name for path in pages if f"{path.parent.name}/{path.name})" not in index] == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_relative_link_leads_to_a_file_and_a_heading(path: Path) -> None:
    page = re.sub(r"^```.*?^```|`[^`\n]*`", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page):
        if link.startswith(("https://", "http://", "mailto:")):
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        if not target.exists() or (anchor and anchor not in anchors(target.read_text(encoding="utf-8"))):
            broken.append(link)
    assert broken == []


def test_every_run_file_in_the_documents_is_there_and_every_run_file_is_in_the_readme() -> None:
    named = {name for path in PAGES for name in re.findall(r"configs/[\w-]+\.yaml", path.read_text(encoding="utf-8"))}
    assert [name for name in sorted(named) if not (ROOT / name).is_file()] == []
    assert [path.name for path in CONFIGS if f"configs/{path.name}" not in text("README.md")] == []


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_run_file_is_valid_and_begins_with_its_command(path: Path) -> None:
    program, command, name = command_of(path).split()
    assert (program, name) == ("sst-merge", f"configs/{path.name}")
    kinds = {"run": RunConfig, "train": TrainConfig}
    load_config(kinds[command], path)


@pytest.mark.parametrize("name", ["README.md", "docs/formats.md"])
def test_the_run_files_in_the_documents_are_valid(name: str) -> None:
    examples = blocks(text(name), "yaml")
    assert examples
    for example in examples:
        validate(RunConfig, yaml.safe_load(example), name)


@pytest.mark.parametrize("line", shown_commands())
def test_every_command_in_the_documents_is_understood(line: str) -> None:
    program, *arguments = shlex.split(line)
    if program == "make":
        targets = re.findall(r"^([a-z]+):", text("Makefile"), flags=re.MULTILINE)
        assert set(arguments) <= set(targets)
    elif program == "sst-merge":
        name, *rest = arguments
        assert name in PROGRAM.commands, f"no command {name}"
        PROGRAM.commands[name].make_context(name, rest)  # a wrong option or argument raises
    else:
        assert Path(program).name == "python"
        assert (ROOT / arguments[0]).is_file()


def test_the_readme_begins_with_the_two_commands_and_marks_the_place_of_the_measured_numbers() -> None:
    readme = text("README.md")
    first = blocks(readme, "sh")[0].splitlines()
    assert [line.partition("#")[0].strip() for line in first] == ["make demo", "make test"]
    assert readme.index("<!-- demo-results -->") < readme.index("<!-- /demo-results -->")


def test_the_licence_is_the_one_that_the_package_names() -> None:
    licence = text("LICENSE")
    assert "Apache License" in licence
    assert "Version 2.0, January 2004" in licence
    assert "END OF TERMS AND CONDITIONS" in licence
    assert 'license = "Apache-2.0"' in text("pyproject.toml")
