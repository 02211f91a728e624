"""Layers, validation and messages of the configuration."""

import re
from pathlib import Path

import pytest

from bench.runner.sweep import run_directory
from bench.sweep import config
from bench.sweep.config import ConfigError, Sweep, load, with_own_defaults

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """Run in a folder without a bench.toml."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_section_without_keys_takes_nothing_back(empty):
    quick = load().sweep
    assert quick.efficiency.rounds == 2
    (empty / "bench.toml").write_text('[sweep]\npreset = "quick"\n[efficiency]\n[run]\n[recipe]\n[transfer]\n')
    assert load().sweep == quick
    assert load(sets=["efficiency.rounds=5", "recipe.epochs=2"]).sweep.efficiency.rounds == 5
    (empty / "bench.toml").write_text("[eficiency]\n")
    with pytest.raises(ConfigError, match="efficiency"):
        load()


def test_the_documented_file_is_quick_and_shows_the_defaults(empty, tmp_path):
    assert load(ROOT / "bench.toml").sweep == load(preset="quick").sweep
    text = (ROOT / "bench.toml").read_text().replace('preset = "quick"', "")
    shown = tmp_path / "bench.toml"  # `#key = value` is the default of a key, `# key = value` an example
    shown.write_text(re.sub(r"(?m)^#(?=\w+ = )", "", text))
    assert shown.read_text() != text and load(shown).sweep == Sweep()


def test_every_key_is_in_the_documented_file():
    text = (ROOT / "bench.toml").read_text()
    for key in config._keys():
        name = key.rpartition(".")[2]
        assert name in text, f"bench.toml does not mention {key}"


def test_layers_later_wins(empty):
    (empty / "bench.toml").write_text('[sweep]\npreset = "quick"\nresolutions = [96]\nseeds = [7]\n')
    from_file = load().sweep
    assert from_file.sweep.resolutions == [96] and from_file.sweep.recipe == "quick"
    with_preset = load(preset="standard").sweep
    assert with_preset.sweep.resolutions == [224] and with_preset.sweep.seeds == [0, 1, 2]
    with_flag = load(preset="standard", flags={"sweep.seeds": "3,4"}).sweep
    assert with_flag.sweep.seeds == [3, 4]
    assert load(preset="standard", flags={"sweep.seeds": "3"}, sets=["seeds=[5]"]).sweep.sweep.seeds == [5]


def test_flags_take_commas_and_brackets(empty):
    sweep = load(flags={"sweep.models": "resnet18,medmamba_tiny[branch=ssm,directions=2]"}).sweep
    assert sweep.sweep.models == ["resnet18", "medmamba_tiny[branch=ssm,directions=2]"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[sweep]\nmodles = 1\n", ["line 2", "modles", "'models'"]),
        ("[swep]\n", ["line 1", "'swep'", "'sweep'"]),
        ("[sweep]\n\nseeds = [-1]\n", ["line 3", "sweep.seeds", "-1"]),
        ('[sweep]\nkinds = ["acuracy"]\n', ["line 2", "'accuracy'"]),
        ('[sweep]\npreset = "quik"\n', ["line 2", "'quick'"]),
        ("[sweep\n", ["line 1"]),
        ("models = 3\n", ["unknown section 'models'"]),
        ("[plugins]\nfiles = []\n", ["paths"]),
        ("sweep = 3\n", ["[sweep]"]),
        ("[sweep]\nresolutions = [4]\n", ["line 2", "should be at least 8"]),
        ("[sweep]\nmodels = []\n", ["line 2", "sweep.models"]),
    ],
)
def test_a_wrong_file_is_named_with_its_line(tmp_path, text, said):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(path)
    for part in [str(path), *said]:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"sets": ["sedes=1"]}, ["--set sedes=1", "'seeds'"]),
        ({"sets": ["seeds"]}, ["key=value"]),
        ({"flags": {"run.device": "gpu"}}, ["--device", "gpu"]),
        ({"flags": {"sweep.resolutions": "big"}}, ["--resolutions", "big"]),
        ({"preset": "fast"}, ["--preset", "quick, standard, paper"]),
        ({"sets": ["seeds=[0,1"]}, ["--set seeds=[0,1"]),
        ({"sets": ["efficiency.budget_s=inf"]}, ["budget_s", "finite"]),
        ({"sets": ["preset=quik"]}, ["--set preset=quik", "'quick'"]),
        ({"preset": ""}, ["--preset", "quick, standard, paper"]),
    ],
)
def test_a_wrong_flag_is_named(empty, arguments, said):
    with pytest.raises(ConfigError) as caught:
        load(**arguments)
    for part in said:
        assert part in str(caught.value)


def test_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(ConfigError, match="no configuration file"):
        load(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="directory"):
        load(tmp_path)
    (tmp_path / "x.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="UTF-8"):
        load(tmp_path / "x.toml")


def test_several_mistakes_are_told_together(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('[sweep]\nseeds = [-1]\nresize = "cubic"\n')
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert "line 2" in str(caught.value) and "line 3" in str(caught.value) and "'bicubic'" in str(caught.value)


def test_a_preset_counts_wherever_it_is_named(empty):
    quick = load(preset="quick").sweep
    assert load(sets=["preset=quick"]).sweep == quick == load(flags={"sweep.preset": "quick"}).sweep
    assert load(sets=["sweep.preset=quick", "seeds=[4]"]).sweep.sweep.seeds == [4]


def test_words_as_people_write_them(empty):
    assert load(sets=["recipe=quick"]).sweep.sweep.recipe == "quick"
    assert load(sets=["recipe.flip=0.0"]).sweep.recipe == {"flip": 0.0}
    assert load(sets=["plugins.paths=mine.py"]).sweep.plugins == ["mine.py"]
    assert load(sets=["resolutions=[64]"]).sweep.sweep.resolutions == [64]
    assert load(flags={"sweep.kinds": "accuracy, efficiency"}).sweep.sweep.kinds == ["accuracy", "efficiency"]


def test_a_byte_order_mark_is_no_mistake(empty):
    (empty / "bench.toml").write_bytes(b"\xef\xbb\xbf[sweep]\nseeds = [3]\n")
    assert load().sweep.sweep.seeds == [3]


def test_quick_is_what_runs_where_nothing_is_named(empty):
    quick = load(preset="quick").sweep
    assert load().sweep == quick and load().name == "quick"
    assert quick.efficiency.resolutions is None, "cost is measured at the size that is trained"
    assert load(flags={"sweep.epochs": "2"}).sweep.sweep.models == quick.sweep.models
    assert load(sets=["sizes=[28]"]).sweep.sweep.preset == "quick"
    for flags in ({"sweep.models": "all"}, {"sweep.datasets": "medmnist"}):
        assert load(flags=flags).sweep == Sweep.model_validate(
            {"sweep": {key.partition(".")[2]: value for key, value in flags.items()}}
        )
    assert load(sets=["models=resnet18"]).sweep.sweep.recipe == "medmnist"
    assert load(preset="standard").sweep.sweep.models == ["all"]
    (empty / "bench.toml").write_text('[run]\ndata_root = "data"\n')
    assert load().sweep.sweep == quick.sweep and load().sweep.run.data_root == "data"
    (empty / "bench.toml").write_text('[sweep]\ndatasets = ["phantoms"]\n')
    assert load().sweep == Sweep() and load().name == "sweep"


def test_data_of_ones_own_alone_has_defaults_of_its_own_and_they_are_said(empty):
    """MedMNIST's 100 epochs of every size at 224 px take 17 hours of two cores for 200 images."""
    (empty / "scans").mkdir()
    for name in ("folder:scans", "scans", "csv:t.csv[label=x]", "folder:a,hf:b/c"):
        plain = load(flags={"sweep.datasets": name})
        own = with_own_defaults(plain)
        assert own.sweep.sweep.resolutions == [64] and own.sweep.sweep.recipe == "standard"
        assert own.sweep.sweep.models == config.SMALLEST and own.sweep.efficiency.resolutions is None
        assert "--models all" in own.note and "64 px" in own.note and "recipe standard" in own.note
    for flags in ({"sweep.datasets": "phantoms"}, {"sweep.datasets": "breastmnist,folder:scans"}, {},
                  {"sweep.datasets": "pad_ufes_20[split=author]"}):  # fmt: skip
        published = load(flags=flags)
        assert with_own_defaults(published) is published
    assert with_own_defaults(load(preset="paper", flags={"sweep.datasets": "scans"})).sweep.sweep.seeds == [
        0,
        1,
        2,
        3,
        4,
    ]
    told = {"sweep.datasets": "scans", "sweep.models": "resnet18", "sweep.resolutions": "224"}
    said = with_own_defaults(load(flags=told))
    assert said.sweep.sweep.resolutions == [224] and said.sweep.sweep.models == ["resnet18"]
    assert said.note == "defaults for data of your own: recipe standard (--recipe)"
    assert not with_own_defaults(load(flags={**told, "sweep.recipe": "medmnist"})).note
    started = {"sweep.datasets": "scans", "sweep.models": "resnet18[pretrained=true]"}
    assert with_own_defaults(load(flags=started)).sweep.sweep.resolutions == [224]
    (empty / "bench.toml").write_text('[sweep]\npreset = "quick"\n')
    assert with_own_defaults(load(flags={"sweep.datasets": "scans"})).note.count("\n") == 1, "and that quick gives way"


def test_quick_of_a_file_gives_way_to_models_and_datasets_and_says_so(empty):
    (empty / "bench.toml").write_text('[sweep]\npreset = "quick"\nseeds = [7]\n')
    assert load().name == "quick" and load().sweep.sweep.seeds == [7] and not load().note
    main = load(flags={"sweep.models": "all", "sweep.datasets": "medmnist"})
    assert main.sweep.sweep.recipe == "medmnist" and main.sweep.sweep.seeds == [7] and main.name == "sweep"
    assert "line 2" in main.note and "--models" in main.note
    forced = load(preset="quick", flags={"sweep.models": "all"})
    assert forced.sweep.sweep.recipe == "quick" and forced.sweep.sweep.models == ["all"] and not forced.note
    (empty / "bench.toml").write_text('[sweep]\npreset = "paper"\n')
    assert load(flags={"sweep.models": "resnet18"}).sweep.sweep.seeds == [0, 1, 2, 3, 4]


def test_the_run_directory_is_named_by_preset_or_config(empty):
    (empty / "mine.toml").write_text('[sweep]\nmodels = ["resnet18"]\n')
    assert run_directory(load()) == Path("runs/quick")
    assert run_directory(load(Path("mine.toml"))) == Path("runs/mine")
    assert run_directory(load(flags={"sweep.models": "all"})) == Path("runs/sweep")
    assert run_directory(load(preset="paper", flags={"run.out": "here"})) == Path("here")
