"""Names, variants, words, duplicates and plug-ins."""

import subprocess
import sys
import textwrap

import pytest

from bench import registry
from bench.registry import ModelInfo, Option, Registry, RegistryError, parse_model, split_names


@pytest.fixture
def clean_registries(monkeypatch):
    """Let a test register what it likes without leaving traces."""
    for one in (registry.models, registry.datasets):
        list(one)
        monkeypatch.setattr(one, "_info", dict(one._info))
        monkeypatch.setattr(one, "_aliases", dict(one._aliases))


def test_splitting_names_respects_brackets():
    assert split_names("a,b[c=1,d=2], e") == ["a", "b[c=1,d=2]", "e"]
    assert split_names("") == []


def test_a_variant_is_canonical():
    assert str(parse_model("medmamba_tiny[ directions=2 , branch=ssm ]")) == "medmamba_tiny[branch=ssm,directions=2]"
    assert parse_model("medmamba_tiny[branch=both]") == parse_model("medmamba_tiny")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("medmamba_tinny", "'medmamba_tiny'"),
        ("medmamba_tiny[brunch=ssm]", "'branch'"),
        ("medmamba_tiny[branch=sm]", "both, conv, ssm"),
        ("medmamba_tiny[branch]", "key=value"),
        ("medmamba_tiny[d_state=big]", "type int"),
        ("resnet18[x=1]", "no option 'x'"),
        ("medmamba_tiny[shuffle=0]", "true, false"),
        ("medmamba_tiny[drop_path_rate=nan]", "finite"),
        ("medmamba_tiny[drop_path_rate=true]", "type float"),
        ("nothing*", "no model matches"),
        ("medmamba_tiny[branch=ssm", "write name or name"),
    ],
)
def test_a_wrong_model_is_told(name, said):
    with pytest.raises(RegistryError) as caught:
        registry.expand_models([name])
    assert said in str(caught.value)


def test_words_and_globs():
    every = [str(spec) for spec in registry.expand_models(["all"])]
    families = {registry.models[name].family for name in every}
    assert families == {"medmamba", "vmamba", "resnet", "vit", "swin"} and len(every) == 13
    assert not [name for name in every if "[" in name or "timm:" in name]
    assert [str(s) for s in registry.expand_models(["resnet", "resnet18"])] == ["resnet18", "resnet50"]
    assert [str(s) for s in registry.expand_models(["vit_*"])] == [n for n in every if n.startswith("vit_")]
    assert [str(s) for s in registry.expand_models(["medmamba[branch=ssm]"])] == [
        f"medmamba_{size}[branch=ssm]" for size in ("tiny", "small", "base")
    ]
    assert len(registry.expand_models(["ablations"])) > 8
    assert len(registry.expand_datasets(["medmnist"])) == 12
    assert set(registry.expand_datasets(["all"])) == set(registry.expand_datasets(["medmnist", "phantoms"]))


def test_a_duplicate_name_shows_both_origins():
    one = Registry("model", "bench.models._info")
    one._builtin_module = None
    one.add(ModelInfo("x", "x", builder="a:b", origin="first.py:1"))
    with pytest.raises(RegistryError, match=r"first\.py:1.*second\.py:2"):
        one.add(ModelInfo("x", "x", builder="a:b", origin="second.py:2"))


def test_a_decorated_model_is_found_and_built(clean_registries):
    @registry.register_model(family="only_here", options={"width": Option(4, (4, 8))})
    def my_net(num_classes, in_chans, img_size, width=4):
        return ("net", num_classes, in_chans, img_size, width)

    facts = registry.model_info("my_net")
    assert facts.plugin_file == __file__ and facts.origin.startswith(__file__)
    assert facts.build(5, 1, 28, **dict(parse_model("my_net[width=8]").options)) == ("net", 5, 1, 28, 8)
    assert [str(s) for s in registry.expand_models(["only_here"])] == ["my_net"]
    assert "my_net" not in [str(s) for s in registry.expand_models(["all"])]


def test_an_unknown_fact_is_told(clean_registries):
    with pytest.raises(RegistryError, match="'family'"):
        registry.register_model(famly="x")
    with pytest.raises(RegistryError, match="classes"):
        registry.register_dataset("mine", task="multi-class", channels=1)
    with pytest.raises(RegistryError, match="none of"):

        @registry.register_dataset("mine", task="regression", classes=("a",), channels=1)
        class Mine:
            pass


def test_plugins(clean_registries, tmp_path):
    (tmp_path / "good.py").write_text(
        "from bench.registry import register_model\n@register_model()\ndef plug_net(num_classes, in_chans, img_size):\n"
        "    return None\n"
    )
    (tmp_path / "bad.py").write_text("1/0\n")
    registry.load_plugins(["good.py"], tmp_path)
    registry.load_plugins(["good.py"], tmp_path)  # a second time is no duplicate
    assert registry.models["plug_net"].plugin_file == str(tmp_path / "good.py")
    for name, said in (("bad.py", "ZeroDivisionError"), ("none.py", "no file"), ("no_such_module_x", "No module")):
        with pytest.raises(RegistryError, match=said):
            registry.load_plugins([name], tmp_path)


def test_a_changed_plugin_takes_the_place_of_its_former_self(clean_registries, tmp_path):
    file = tmp_path / "mine.py"
    text = "from bench.registry import register_model\n@register_model()\n"
    text += "def changing(num_classes, in_chans, img_size, a=1):\n"
    file.write_text(text + "    return 1\n")
    registry.load_plugins(["mine.py"], tmp_path)
    file.write_text("\n" + text + "    return 22\n")
    registry.load_plugins(["mine.py"], tmp_path)
    assert registry.models["changing"].build(1, 1, 1) == 22
    with pytest.raises(RegistryError, match="options: a"):
        registry.parse_model("changing[b=1]")


def test_a_plugin_cannot_take_a_family_or_register_twice(clean_registries, tmp_path):
    (tmp_path / "family.py").write_text(
        "from bench.registry import register_model\n@register_model(family='x')\n"
        "def resnet(num_classes, in_chans, img_size):\n    return 1\n"
    )
    with pytest.raises(RegistryError, match="families"):
        registry.load_plugins(["family.py"], tmp_path)
    (tmp_path / "twice.py").write_text(
        "from bench.registry import register_model\n"
        "@register_model(name='twice')\nclass A: pass\n@register_model(name='twice')\nclass B: pass\n"
    )
    with pytest.raises(RegistryError, match=r"twice\.py:2.*twice\.py:4"):
        registry.load_plugins(["twice.py"], tmp_path)


def test_a_plugin_cannot_take_a_builtin_name(clean_registries, tmp_path):
    (tmp_path / "thief.py").write_text(
        "from bench.registry import register_model\n@register_model()\ndef resnet18(num_classes, in_chans, img_size):\n"
        "    return None\n"
    )
    with pytest.raises(RegistryError) as caught:
        registry.load_plugins(["thief.py"], tmp_path)
    assert "models.toml" in str(caught.value) and "thief.py" in str(caught.value)


@pytest.mark.parametrize(
    "code", ["import bench", "import bench.cli.main", "import bench.cli.listing, bench.report.build"]
)
def test_no_torch_is_imported(code):
    script = textwrap.dedent(f"""
        import sys
        {code}
        from bench import registry
        registry.expand_models(["all", "ablations"]); registry.expand_datasets(["all"])
        assert "torch" not in sys.modules, "torch"
    """)
    subprocess.run([sys.executable, "-c", script], check=True)


def test_threads_that_ask_at_once_all_get_an_answer():
    code = (
        "from concurrent.futures import ThreadPoolExecutor; from bench import registry\n"
        "ask = lambda i: registry.dataset_info('breastmnist').name + registry.model_info('resnet18').name\n"
        "print(set(ThreadPoolExecutor(8).map(ask, range(64))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "{'breastmnistresnet18'}", done.stderr
