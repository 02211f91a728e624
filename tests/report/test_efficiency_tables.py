"""The efficiency tables: what is kept apart, what the noise floor means, what the exponents are fitted to."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from bench.record import store
from bench.report.build import write_boards
from tests.report.pages import csv, page, table

MIB = 2**20


def headings(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("### ")]


# --- settings --------------------------------------------------------------------------------------------------


def test_other_libraries_are_another_table_and_only_what_differs_is_named(run: Any, tmp_path: Path):
    for torch, speed in (("2.9.0", 10.0), ("2.15.0", 20.0)):
        run.efficiency("a", 64, speed=speed, of={"versions": {"torch": torch, "timm": "1.0.31"}})
    text = page(run, tmp_path)
    assert headings(text) == [
        "### Inference, fp32, eager, cpu (Some CPU), 2 threads, torch 2.15.0",
        "### Inference, fp32, eager, cpu (Some CPU), 2 threads, torch 2.9.0",
    ]
    assert [r["images/s"] for r in table(text, "torch 2.9.0")] == ["10.0"]
    assert set(csv(tmp_path, "efficiency").versions) == {"timm 1.0.31, torch 2.15.0", "timm 1.0.31, torch 2.9.0"}


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"backend": "reference"}, ("scan backend cpu", "scan backend reference")),
        ({"rounds": 1}, ("3 rounds", "1 round")),
        ({"budget_s": 0.5}, ("1.0 s a pass", "0.5 s a pass")),
        ({"omp_wait_policy": None}, ("omp_wait_policy PASSIVE", "omp_wait_policy not recorded")),
        ({"versions": {"torch": "2.15.0", "mamba-ssm": "2.3"}}, ("without mamba-ssm", "mamba-ssm 2.3")),
    ],
)
def test_what_decides_a_speed_is_never_mixed(run: Any, tmp_path: Path, other: dict[str, Any], words: tuple[str, str]):
    run.efficiency("a", 64, speed=10.0)
    run.efficiency("a", 64, speed=20.0, of=other)
    text = page(run, tmp_path)
    assert {heading.split("2 threads, ")[1] for heading in headings(text)} == set(words)
    assert {column for column in other if column != "rounds"} <= set(csv(tmp_path, "efficiency").columns)


def test_settings_that_differ_otherwise_need_no_further_words(run: Any, tmp_path: Path):
    run.efficiency("a", 64, speed=10.0)
    run.efficiency("a", 64, speed=20.0, precision="bf16", of={"versions": {"torch": "2.16.0"}})
    assert "2.16.0" not in "".join(headings(page(run, tmp_path)))


# --- noise -----------------------------------------------------------------------------------------------------


def test_noise_floor_is_what_95_percent_of_repeats_stay_below(run: Any, tmp_path: Path):
    """noise_rel is one standard deviation of a difference; squares are averaged, for only they are unbiased."""
    for resolution, noise in ((64, 0.01), (128, 0.02), (256, 0.02)):
        run.efficiency("a", resolution, speed=10.0, noise_rel=noise)
    assert 100 * 1.96 * math.sqrt((0.01**2 + 2 * 0.02**2) / 3) == pytest.approx(3.395, abs=1e-3)
    text = page(run, tmp_path)
    assert "Noise floor: 3.4 % in images/s; 95 % of repeats of one row differ by less" in text
    assert "3.9 % for the worst, `a` at 256 px, batch 8" in text


def test_no_change_of_order_within_the_noise_of_the_two_rows(run: Any, tmp_path: Path):
    for model, speeds in {"resnet18": (100, 80), "vit_tiny": (120, 60)}.items():
        for resolution, speed in zip((64, 128), speeds, strict=True):
            run.efficiency(model, resolution, speed=float(speed), noise_rel=0.001)
    for resolution in (128, 256, 512, 1024):  # quiet rows of another model keep the floor low
        run.efficiency("swin", resolution, speed=1.0, noise_rel=0.001)
    assert "`resnet18` is faster than `vit_tiny`" in page(run, tmp_path)
    run.records[0]["metrics"]["noise_rel"] = 0.11
    assert "is faster than `vit_tiny`" not in page(run, tmp_path)


def test_the_latency_has_its_own_floor_and_the_noisy_rows_their_share(run: Any, tmp_path: Path):
    for resolution, noisy in ((64, False), (128, False), (256, True), (512, False)):
        run.efficiency("a", resolution, speed=10.0, noise_rel=0.01, latency_noise_rel=0.02, noisy=noisy)
    text = page(run, tmp_path)
    assert "Noise floor: 2.0 % in images/s and 3.9 % in latency at batch 1; 95 % of repeats" in text
    assert "1 of 4 rows (25 %) is noisy by its own repeats." in text


def test_rows_that_wait_for_the_host_stand_beside_what_the_device_can_do(run: Any, tmp_path: Path):
    run.efficiency("a", 64, speed=10.0, device_images_per_s_p50=35.0, device_noise_rel=0.004, launch_bound=True)
    run.efficiency("b", 64, speed=20.0, device_images_per_s_p50=21.0, device_noise_rel=0.003, noisy=True)
    text = page(run, tmp_path)
    rows = {row["model"]: row for row in table(text, "Efficiency")}
    assert rows["a"]["device images/s"] == "35.0" and rows["a"]["flags"] == "launch-bound"
    assert rows["b"]["device images/s"] == "21.0" and rows["b"]["flags"] == "noisy"
    assert "1 of 2 rows is launch-bound" in text and "its noise floor is 0.69 %" in text  # 1.96 x 0.00354


# --- further columns -------------------------------------------------------------------------------------------


def test_columns_of_memory_and_of_the_roofline_stand_where_they_were_measured(run: Any, tmp_path: Path):
    more = {"peak_allocated_mib": 111.0, "peak_reserved_mib": 112.0, "peak_device_mib": 512.0}
    place = {"mfu": 0.345, "roofline_fraction": 0.61, "bound": "memory"}
    run.efficiency("a", 64, speed=10.0, memory=111.0, device="cuda:0", **more, **place)
    run.efficiency("a", 64, speed=10.0, memory=90.0, mfu=0.5, of={"compile": True})
    text = page(run, tmp_path)
    (gpu,), (compiled,) = (table(text, f"### Inference, fp32, {words}") for words in ("eager, cuda:0", "compiled"))
    shown = [gpu[column] for column in ("peak memory MiB", "reserved MiB", "device MiB", "MFU", "of the roof", "bound")]
    assert shown == ["111", "112", "512", "34 %", "61 %", "memory"]
    assert compiled["MFU"] == "50 %" and not {"reserved MiB", "of the roof", "bound"} & set(compiled)


# --- changes of order ------------------------------------------------------------------------------------------


def test_a_family_overtakes_another_with_its_evidence(run: Any, tmp_path: Path):
    """Linear and quadratic in the pixels, equal at 300 pixels; 2 % of noise move that by about 1 % of the side."""
    for resolution in (128, 256, 512):
        for model, power in (("medmamba_tiny", 2), ("swin_tiny", 4)):
            speed = 50.0 * (300 / resolution) ** power
            run.efficiency(model, resolution, speed=speed, noise_rel=0.02, memory=10.0 * resolution, params=10_000_000)
    text = page(run, tmp_path)
    (sentence,) = [line for line in text.splitlines() if line.startswith("- Above about")]
    start = "- Above about 300 px `medmamba_tiny` is faster than `swin_tiny` (between the measured 256 and 512 px)"
    assert sentence.startswith(start)
    assert f"it takes {100 * ((300 / 256) ** 2 - 1):.0f} % more time at 256 px" in sentence
    assert f"{100 * (1 - (300 / 512) ** 2):.0f} % less at 512 px" in sentence
    assert "memory than" not in text


def test_growth_and_order_are_those_of_the_device_where_all_rows_have_it(run: Any, tmp_path: Path):
    """By the host's launches all are equally fast up to 256 pixels; on the device one is linear and one quadratic."""
    for resolution in (128, 256, 512):
        for model, power in (("medmamba_tiny", 2), ("swin_tiny", 4)):
            device = 50.0 * (300 / resolution) ** power
            speed = min(30.0, device)
            figures = {"device_images_per_s_p50": device, "device_noise_rel": 0.001, "noise_rel": 0.2}
            run.efficiency(model, resolution, speed=speed, params=10_000_000, **figures)
    text = page(run, tmp_path)
    assert "Time is that of an image on the device, launches aside" in text
    rows = {row["model"]: row["time exponent"] for row in table(text, "Growth with the image")}
    assert rows == {"medmamba_tiny": "1.00", "swin_tiny": "2.00"}
    (sentence,) = [line for line in text.splitlines() if line.startswith("- Above about")]
    assert sentence.startswith("- Above about 300 px") and "`medmamba_tiny` is faster than `swin_tiny`" in sentence


def test_each_machine_has_a_line_at_the_top_and_a_gpu_is_first(run: Any, tmp_path: Path):
    for resolution in (128, 256, 512):
        for model, factor in (("resnet18", 2.0), ("vit_tiny", 1.0)):
            run.efficiency(model, resolution, speed=factor * 1e5 / resolution**2, noise_rel=0.01)
            of = {"device": "cuda:0", "hardware": "a GPU"}
            figures = {"device_images_per_s_p50": 1e8 / factor / resolution**2, "device_noise_rel": 0.002}
            run.efficiency(model, resolution, speed=9.0, noise_rel=0.3, of=of, **figures)
    top = [line for line in page(run, tmp_path).split("\n## ", 1)[0].splitlines() if line.startswith("- Fastest")]
    assert len(top) == 2
    assert "a GPU" in top[0] and "`vit_tiny` with 381 images/s on the device; the noise floor is 0.39 %" in top[0]
    assert "`resnet18` with 0.763 images/s; the noise floor is 2.0 %" in top[1]


def test_one_row_without_the_devices_time_and_all_are_judged_by_what_users_see(run: Any, tmp_path: Path):
    for resolution in (128, 256, 512):
        run.efficiency("a", resolution, speed=1e6 / resolution**2, device_images_per_s_p50=1e12 / resolution**4)
        run.efficiency("b", resolution, speed=1e6 / resolution**2)  # no graph could hold it
    rows = table(page(run, tmp_path), "Growth with the image")
    assert [row["time exponent"] for row in rows] == ["1.00", "1.00"]


def test_memory_changes_order_too(run: Any, tmp_path: Path):
    for resolution in (128, 256, 512):
        for model, power in (("resnet18", 2), ("vit_tiny", 4)):
            run.efficiency(model, resolution, speed=1.0, memory=100 * (resolution / 200) ** power)
    text = page(run, tmp_path)
    said = "`resnet18` needs less memory than `vit_tiny` (between the measured 128 and 256 px): it takes 144 %"
    assert said in text


def test_the_pair_nearest_in_size_speaks_for_two_families(run: Any, tmp_path: Path):
    sizes = {"resnet18": 11, "resnet50": 25, "vit_tiny": 6, "vit_small": 22}
    for resolution in (128, 256, 512):
        for model, size in sizes.items():
            power = 2 if model.startswith("resnet") else 4
            run.efficiency(model, resolution, speed=(200 / resolution) ** power, params=size * 10**6)
    lines = [line for line in page(run, tmp_path).splitlines() if line.startswith("- Above about")]
    assert len(lines) == 1
    assert "`resnet50` is faster than `vit_small`" in lines[0]
    assert lines[0].endswith("4 of 4 pairs of these families change order; this is the nearest in size.")


def test_the_largest_two_resolutions_have_an_exponent_of_their_own(run: Any, tmp_path: Path):
    """A constant and a quadratic part: 1 + (r / 128)^4 grows by 17 / 2, then by 257 / 17, the pixels fourfold."""
    for resolution in (128, 256, 512):
        cost = 1 + (resolution / 128) ** 4
        run.efficiency("a", resolution, speed=1 / cost, memory=4 * PARAMS / MIB + 100 * cost, params=PARAMS)
    (row,) = table(page(run, tmp_path), "Growth with the image")
    expected = f"{math.log(257 / 17) / math.log(4):.2f}"
    assert row["last time exponent"] == row["last memory exponent"] == expected


# --- growth ----------------------------------------------------------------------------------------------------

PARAMS = 11_689_512


@pytest.mark.parametrize(
    ("mode", "bytes_a_parameter", "saved", "words"),
    [
        ("infer", 4, False, "memory is peak memory less 4 bytes a parameter (weights)"),
        ("train", 16, False, "less 16 bytes a parameter (weights, gradients and moments)"),
        ("train", 16, True, "what the forward keeps"),
    ],
)
def test_memory_exponent_is_that_of_the_activations(
    run: Any, tmp_path: Path, mode: str, bytes_a_parameter: int, saved: bool, words: str
):
    """Constant weights beside activations that grow as the pixels do: the exponent is 1, not the 0.3 of their sum."""
    for resolution in (64, 128, 256):
        activations = 50 * (resolution / 64) ** 2
        more = {"saved_activations_mib": activations} if saved else {}
        memory = bytes_a_parameter * PARAMS / MIB + (7 * resolution if saved else activations)
        run.efficiency("a", resolution, mode=mode, speed=10.0, memory=memory, params=PARAMS, **more)
    text = page(run, tmp_path)
    (row,) = table(text, "Growth with the image")
    assert row["memory exponent"] == "1.00"
    assert words in text


def test_activations_lost_beside_the_weights_are_not_fitted(run: Any, tmp_path: Path):
    """A remainder of a hundredth of the peak is the error of the meter."""
    for resolution, rest in ((64, -0.4), (128, 0.5), (256, 40.0), (384, 90.0), (512, 160.0)):
        run.efficiency("a", resolution, speed=1e5 / resolution**2, memory=4 * PARAMS / MIB + rest, params=PARAMS)
    (row,) = table(page(run, tmp_path), "Growth with the image")
    assert row["memory exponent"] == "1.00"


def test_a_familys_exponent_is_of_its_plain_models_at_one_batch(run: Any, tmp_path: Path):
    twin, variant = "medmamba_tiny_ssm_twin", "medmamba_tiny[branch=ssm]"
    powers = {"medmamba_tiny": 1.0, "medmamba_small": 1.0, twin: 2.0, variant: 3.0, "timm:medmamba_x": 2.0}
    for model, power in powers.items():
        for resolution in (64, 128, 256):
            for batch in (1, 8):
                speed = (64 / resolution) ** (2 * power * (1 if batch == 8 else 0.5))
                run.efficiency(model, resolution, speed=speed, batch=batch)
    rows = [r for r in table(page(run, tmp_path), "Growth with the image") if r["model"].startswith("all ")]
    assert [(r["model"], r["batch"], r["time exponent"]) for r in rows] == [
        ("all medmamba (2 models)", "1", "0.50"),
        ("all medmamba (2 models)", "8", "1.00"),
    ]


# --- the largest batch -----------------------------------------------------------------------------------------


def test_the_largest_batch_is_named_and_never_compared(run: Any, tmp_path: Path):
    for model in ("resnet18", "vit_tiny"):
        for resolution, largest in ((64, 512), (128, 130), (256, 37)):
            speed = (1e6 if model == "resnet18" else 2e8 / resolution) / resolution**2
            run.efficiency(model, resolution, batch=0, speed=speed, memory=20_000.0, largest_batch=largest, params=1)
    run.efficiency("resnet18", 512, batch=0, status="oom", reason="too much", largest_batch=0)
    text = page(run, tmp_path)
    assert [r["batch"] for r in table(text, "### Inference")][:4] == [
        "largest (512)", "largest (130)", "largest (37)", "largest"]  # fmt: skip
    assert "Growth with the image" not in text
    assert "is faster than" not in text
    assert "at 512 px, batch largest, fp32, infer, cpu" in text


def test_the_largest_batch_is_no_cost_beside_accuracy(run: Any, tmp_path: Path):
    run.accuracy("a", "one", 0.9)
    more = {"params": 2_000_000, "latency_ms_p50": 3.0}
    run.efficiency("a", 64, batch=0, speed=99.0, memory=20_000.0, largest_batch=37, **more)
    text = page(run, tmp_path)
    (row,) = table(text, "## Accuracy")
    assert (row["params M"], row["latency ms"]) == ("2.00", "3.00")
    assert "images/s" not in row and "memory MiB" not in row
    assert "1,000 classes; latency (median) at batch 1;" in text
    run.efficiency("a", 64, batch=8, speed=50.0, memory=100.0, **more)
    text = page(run, tmp_path)
    assert [(r["images/s"], r["memory MiB"]) for r in table(text, "## Accuracy")] == [("50.0", "100")]
    assert "images/s and peak memory at batch 8" in text


# --- beside accuracy -------------------------------------------------------------------------------------------


def test_cost_comes_from_the_nearest_resolution_where_none_was_timed_at_the_same(run: Any, tmp_path: Path):
    run.accuracy("a", "one", 0.9, resolution=32)
    for resolution in (64, 128):
        run.efficiency("a", resolution, speed=6400.0 / resolution)
    text = page(run, tmp_path)
    assert [r["images/s"] for r in table(text, "## Accuracy")] == ["100"]
    assert "Cost at 64 px (nothing was measured at 32 px; this is the nearest): inference, fp32" in text
    run.efficiency("a", 32, status="oom", reason="too much")  # where nothing worked, nothing was measured
    assert "Cost at 64 px (nothing was measured at 32 px" in page(run, tmp_path)


# --- figures ---------------------------------------------------------------------------------------------------


def test_energy_is_called_an_estimate_and_stands_beside_the_idle_power(run: Any, tmp_path: Path):
    run.efficiency("a", 64, speed=10.0, device="cuda:0", energy_j_per_image=0.0123, power_idle_w=71.4)
    (row,) = table(page(run, tmp_path), "### Inference")
    assert (row["J/image (est.)"], row["idle W"]) == ("0.0123", "71.4")


def test_the_csv_has_flags_and_every_round(run: Any, tmp_path: Path):
    rounds = [10.123456789012345, 9.5]
    run.efficiency("a", 64, speed=10.0, flags=["noisy", "not warm"], throughput_images_per_s_rounds=rounds,
                   noisy_evidence=["first, of two", "second"])  # fmt: skip
    run.efficiency("b", 64, speed=10.0, flags=[])
    page(run, tmp_path)
    a, b = (line for _, line in csv(tmp_path, "efficiency").iterrows())
    assert a["flags"] == "noisy; not warm"
    assert a["noisy_evidence"] == "first, of two; second"
    assert [float(v) for v in a["throughput_images_per_s_rounds"].split()] == rounds
    assert pd.isna(b["flags"])


# --- unusable speeds -------------------------------------------------------------------------------------------


@pytest.fixture
def disturbed(run: Any) -> Any:
    """Four models with scores; two runs of ``busy`` would differ by 1.96 x 2.57 = 504 %."""
    for i, model in enumerate(("a", "b", "c", "busy")):
        run.accuracy(model, "one", 0.6 + 0.1 * i, acc=0.5)
        noise = 2.57 if model == "busy" else 0.02
        range_ = {"throughput_images_per_s_p10": 9.0, "throughput_images_per_s_p90": 999.0}
        latency = {"latency_ms_p50": 2.0, "latency_noise_rel": 0.02}
        run.efficiency(model, 64, speed=10.0 + 300 * i, memory=50.0, noise_rel=noise, **range_, **latency)
    return run


def test_an_unusable_speed_is_neither_shown_nor_ranked_and_the_page_says_why(disturbed: Any, tmp_path: Path):
    text = page(disturbed, tmp_path)
    rows = {r["model"]: r for r in table(text, "### Inference")}
    assert (rows["busy"]["images/s"], rows["busy"]["p10–p90"]) == ("unusable", "–")
    assert rows["busy"]["latency p50 ms"] == "2.00"  # of samples of its own
    assert rows["c"]["images/s"] == "610"
    assert "`c` with 610 images/s" in text and "910" not in text
    assert "Unusable: images/s in 1 of 4 rows. Two runs would differ by up to 504 % (limit 50 %)" in text
    assert "Noise floor: 3.9 % in images/s" in text  # 1.96 x 0.02: of the others
    (front,) = [line for line in text.splitlines() if "(Pareto front)" in line]
    assert "`c` (images/s" in front and "`busy` (latency" in front
    assert "Unusable speeds: `busy`." in text
    stored = pd.read_csv(tmp_path / "leaderboard_efficiency.csv").set_index("model")
    assert stored.throughput_images_per_s_p50["busy"] == 910  # what was measured stays in the file


def test_just_below_the_limit_a_speed_stays(run: Any, tmp_path: Path):
    run.efficiency("a", 64, speed=100.0, noise_rel=0.255)  # 1.96 x 0.255 = 0.4998
    text = page(run, tmp_path)
    assert table(text, "### Inference")[0]["images/s"] == "100" and "nusable" not in text
    run.records[0]["metrics"]["noise_rel"] = 0.2552  # 0.5002
    text = page(run, tmp_path)
    assert table(text, "### Inference")[0]["images/s"] == "unusable"
    assert "Noise floor: unknown, as no row has usable images/s." in text and "Fastest" not in text


def test_rows_whose_repeats_differ_are_found_for_retry_noisy(disturbed: Any, tmp_path: Path):
    disturbed.efficiency("slow_answer", 64, speed=1.0, noise_rel=0.01, latency_noise_rel=0.3)
    disturbed.efficiency("flagged", 64, speed=1.0, noise_rel=0.03, noisy=True)
    states, _ = store.read_states(disturbed.write(tmp_path))
    noisy = {r["spec"]["model"] for r in disturbed.records if states[r["key"]].noisy}
    assert noisy == {"busy", "slow_answer", "flagged"}


def test_the_registered_family_counts_and_not_the_first_letters_of_a_name(run: Any, tmp_path: Path):
    """Two networks called my_... are no family; two of one recorded family are, whatever they are called."""
    for model, family in (("my_xray_net", "xray"), ("my_other_net", "other"), ("one", "pair"), ("two", "pair")):
        for resolution in (64, 128, 256):
            made = run.efficiency(model, resolution, speed=1e6 / resolution**2, memory=100.0)
            made["family"] = family
    write_boards(run.write(tmp_path), run.records)
    text = (tmp_path / "LEADERBOARD.md").read_text()
    assert "all my (" not in text
    assert "all pair (2 models)" in text


def test_the_family_of_an_older_record_is_the_registrys_or_the_name_itself():
    from bench.report.rows import family_of

    asked = {"model": "medmamba_tiny[branch=ssm]"}, {"model": "vit_tiny_patch16_224"}, {"model": "my_net[width=3]"}
    assert [family_of({"spec": spec}) for spec in asked] == ["medmamba", "vit", "my_net"]
    assert family_of({"spec": {"model": "timm:convnext_tiny"}}) == "timm"
    assert family_of({"spec": asked[0], "family": "mine"}) == "mine"
