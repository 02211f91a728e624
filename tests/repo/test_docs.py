"""What the documentation prints exists: commands parse, links lead somewhere, names are those of the code."""

from __future__ import annotations

import importlib.util
import itertools
import re
import shlex
import tomllib
from pathlib import Path

import pytest

from bench import registry
from bench.record import store
from bench.registry import names as registry_names
from bench.sweep import recipes

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [*(ROOT / "docs").rglob("*.md"), *(ROOT / name for name in ("README.md", "CHANGELOG.md", "results/README.md"))]
)
IDS = [page.name for page in PAGES]
CODES = {"bench": {0, 1, 2, 130}, "check": {0, 1, 2, 3, 4}}


def commands(text: str) -> list[str]:
    """``bench ...`` of indented lines, fenced shell blocks and `code`; comments and prompts are left out."""
    lines = re.findall(r"^ {4,}(?:\$ )?(bench .+)$", text, re.M)
    for block in re.findall(r"```(?:sh|shell|bash|yaml)\n(.*?)```", text, re.S):
        lines += re.findall(r"^\s*(?:- run: |run: )?(?:\S*/)?(bench .+)$", block, re.M)
    lines += re.findall(r"(?<!`)`(bench [^`]+)`(?!`)", text)
    found = [re.sub(r"\s+#\s.*$", "", line).strip() for line in lines]
    return [line for part in found for line in re.split(r"\s+&&\s+", part) if line.startswith("bench ")]


def parse(line: str) -> None:
    """Parse with the command's own parser; the instrument ``bench ops`` has one of its own."""
    from bench.cli.main import make_parser

    options, rest = make_parser().parse_known_args(shlex.split(line)[1:])
    if not getattr(options, "own_flags", False):
        assert not rest, rest


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_commands_parse(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for line in commands(page.read_text(encoding="utf-8")):
        named = re.fullmatch(r"bench ([a-z]+)", line)
        try:
            parse(f"{line} --help" if named else line)
        except SystemExit as error:
            said = capsys.readouterr().err
            assert not error.code, f"{page.name}: {line}\n{said}"


def test_commands_in_messages_parse() -> None:
    """What the program tells its user to type; values that it fills in are taken as they are spelt."""
    found = 0
    for source in sorted([*(ROOT / "bench").rglob("*.py"), *(ROOT / "datasets").glob("*.py")]):
        for text in re.findall(r"`(bench [a-z]+ [^`\n]+)`", source.read_text(encoding="utf-8")):
            line = re.sub(r"\{[^}]*\}(?=s`?$)", "model", re.sub(r"\{argv[^}]*\}", "run", text)).partition(" |")[0]
            try:
                parse(line)
            except SystemExit as error:
                assert not error.code, f"{source}: {text}"
            found += 1
    assert found > 5


def test_commands_are_found_where_pages_print_them() -> None:
    text = "Say `bench run --x 1`.\n\n    bench plan --models a   # why\n    $ bench list models\n"
    text += "\n```sh\n.venv/bin/bench doctor\n```\n"
    assert commands(text) == ["bench plan --models a", "bench list models", "bench doctor", "bench run --x 1"]
    with pytest.raises(AssertionError):
        parse("bench plan --modells a")
    with pytest.raises(SystemExit):
        parse("bench pln")


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"https?:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name) if name else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.M)
            slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, f"{page.name}: {target}; {file.name} has {sorted(slugs)}"


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_values_of_flags_are_names_of_the_code(page: Path) -> None:
    """--models, --datasets, --recipe, --retry and --resize of every command; sources of one's own by their scheme."""
    for line in commands(page.read_text(encoding="utf-8")):
        words = shlex.split(line)
        for flag, value in itertools.pairwise(words):
            if flag == "--models":
                named = [name for name in registry.split_names(value) if not name.startswith("small_cnn")]
                registry.expand_models([name.partition("[pretrained=")[0] for name in named])
            elif flag == "--datasets":
                for name in registry.split_names(value):
                    if registry_names.is_source(name):
                        assert name.partition(":")[0] in registry.SCHEMES
                    else:
                        registry.expand_datasets([name])
            elif flag == "--recipe" and not value.endswith(".toml"):
                assert value in recipes.names(), line
            elif flag == "--retry":
                assert set(value.split(",")) <= set(store.STATUSES), line
            elif flag == "--set" and value.startswith("recipe."):
                assert value[len("recipe.") :].partition("=")[0] in recipes.FIELDS, line


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_registered_names_in_code_exist(page: Path) -> None:
    """Whatever looks like one of our datasets or phantoms is one."""
    for name in re.findall(r"`([a-z0-9_]+)`", page.read_text(encoding="utf-8")):
        if (
            re.fullmatch(r"\w+mnist|phantom_\w+|kvasir_\w+|pad_ufes\w*|otoscopy\w*", name)
            and name not in recipes.names()
        ):
            assert name in registry.datasets or name in registry.datasets.aliases(), f"{page.name}: {name}"


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_toml_snippets_are_read(page: Path) -> None:
    from bench.sweep.config import Sweep

    for block in re.findall(r"```toml\n(.*?)```", page.read_text(encoding="utf-8"), re.S):
        content = tomllib.loads(block)
        if "base" in content:
            assert set(content) - {"base", "summary"} <= set(recipes.FIELDS)
            assert content["base"] in recipes.names()
        else:
            plugins = content.pop("plugins", {})
            assert set(plugins) <= {"paths"}
            Sweep.model_validate(content)


def test_tables_are_those_of_the_code() -> None:
    """``python tests/repo/docs_tables.py`` writes them anew."""
    spec = importlib.util.spec_from_file_location("docs_tables", ROOT / "tests/repo/docs_tables.py")
    assert spec and spec.loader
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    used = set()
    for page in (ROOT / "docs").glob("*.md"):
        text = page.read_text(encoding="utf-8")
        used |= set(re.findall(r"<!-- end of (\S+) -->", text))
        assert tables.filled(text) == text, f"{page.name} is behind the code: python tests/repo/docs_tables.py"
    assert used == set(tables.BLOCKS)


def test_statuses_and_exit_codes_are_those_of_the_code() -> None:
    from bench.cli.flags import FAILED, INTERRUPTED, USAGE
    from bench.report.compare import gate

    text = (ROOT / "docs/recipes.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"Statuses of a cell: (.+?)\. ", text)
    assert tuple(re.findall(r"`(\w+)`", line)) == store.STATUSES
    page = (ROOT / "docs/ci.md").read_text(encoding="utf-8")
    by_code = {int(code): text for code, text in re.findall(r"^\| (\d) \| (.+?) \|", page, re.M)}
    codes = (gate.FINE, gate.REGRESSION, gate.BROKEN, gate.INCOMPARABLE, gate.INCOMPLETE)
    assert set(by_code) == set(codes)
    assert "worse" in by_code[gate.REGRESSION] and "absent" in by_code[gate.INCOMPLETE]
    assert {0, FAILED, USAGE, INTERRUPTED} == CODES["bench"]
    for name in sorted((ROOT / "docs").glob("*.md")):
        for code in re.findall(r"exit code (\d+)", name.read_text(encoding="utf-8")):
            assert int(code) in CODES["bench"] | CODES["check"], f"{name.name}: exit code {code}"


def test_defaults_that_ci_page_states() -> None:
    """The numbers of docs/ci.md beside those of the code."""
    from bench.report.compare.gate import Options
    from bench.report.compare.gate_stats import ENOUGH_CELLS, LEAST_ROUNDS, rounds_needed

    page = (ROOT / "docs/ci.md").read_text(encoding="utf-8")
    options = Options()
    flags = {"alpha": options.alpha, "min-accuracy": options.min_accuracy, "min-speed": options.min_speed}
    flags |= {"min-memory": options.min_memory, "seed-noise": options.seed_noise}
    for flag, value in flags.items():
        assert f"| `--{flag}` | {value:g} |" in page, flag
    stated = {int(tests): int(rounds) for tests, rounds in re.findall(r"^\| (\d+) tests \| (\d+) \|", page, re.M)}
    assert stated == {tests: rounds_needed(tests, options.alpha) for tests in stated} and len(stated) > 2
    words = " ".join(page.split())
    assert f"at least {LEAST_ROUNDS} rounds" in words and f"{ENOUGH_CELLS} or more" in words
