"""The snippets of the README run as they stand."""

import re
from pathlib import Path

from bench import registry

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
