"""The snippets of the README run as they stand."""

import re
from pathlib import Path

import pytest

from bench import registry
from bench.cli.main import main

README = Path(__file__).resolve().parents[2] / "README.md"


def test_the_plugin_snippets_run(tmp_path):
    snippets = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
    assert len(snippets) == 2
    (tmp_path / "mine.py").write_text("\n".join(snippets))
    registry.load_plugins(["mine.py"], tmp_path)
    spec = registry.parse_model("small_cnn[width=8]")
    model = registry.model_info("small_cnn").build(2, 1, 64, **dict(spec.options))
    data = registry.datasets["my_xrays"].open().load(64, None)
    assert data["train"].images.shape == (200, 64, 64, 1)
    import torch

    assert model(torch.from_numpy(data["val"].images).permute(0, 3, 1, 2).float()).shape == (50, 2)


def test_commands_in_the_readme_exist():
    from bench.cli.main import make_parser

    for line in re.findall(r"^    bench (.+?)(?:  +#.*)?$", README.read_text(), re.M):
        make_parser().parse_known_args(line.split())


def test_the_recommendation_on_top_is_that_of_the_published_run(capsys: pytest.CaptureFixture[str]) -> None:
    command, shown = re.search(
        r"^    bench (recommend results/.+)\n\n((?:    .+\n)+)", README.read_text(), re.M
    ).groups()
    run, *flags = command.split()[1:]
    assert main(["recommend", str(README.parent / run), *flags]) == 0
    said = capsys.readouterr().out.splitlines()
    lines = re.sub(r"\n {6}", " ", shown).splitlines()
    assert len(lines) == 5 and all(line.strip() in said for line in lines), said
