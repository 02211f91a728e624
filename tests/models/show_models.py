"""Print what the models are held to, as Markdown: ``python tests/models/show_models.py [--fast]``.

Fixtures against their tolerances, parameters, multiply-adds beside the analytic and the published counts, the
ablations, and that the compiled graph has no break. ``--fast`` leaves the inductor compilation out.
"""

from __future__ import annotations

import argparse
import importlib
import json

import torch
from parity import (
    FAMILIES,
    FIXTURES,
    SIZES,
    eps_error,
    input_gradient_error,
    load_case,
    load_keys,
    logits_error,
    stage_errors,
    train_step,
)

from bench.measure.flops import count_torch
from bench.registry import expand_models, models

PIXELS = (64, 128, 224, 384, 512)


def row(*cells: object) -> None:
    print("| " + " | ".join(map(str, cells)) + " |")


def head(*cells: str) -> None:
    print()
    row(*cells)
    row(*("---" for _ in cells))


def fixtures() -> None:
    print("## Fixtures: largest difference from the public code\n")
    print("abs: against the float64 run. rel: max|difference| / max|reference|, largest over the tensors.")
    head("model", "quantity", "tensors", "max difference", "allowed")
    for family in FAMILIES:
        case = load_case(family)
        for size in SIZES[family]:
            row(family, f"logits {size}, abs", 1, f"{logits_error(case, size):.1e}", "1e-5")
        row(family, "logits eps_case, abs", 1, f"{eps_error(case):.1e}", "1e-5")
        for size in ("64x64", "56x72"):
            errors = stage_errors(case, size)
            stages = {k: v for k, v in errors.items() if k.count(".") <= 1}
            row(family, f"stages {size}, rel", len(stages), f"{max(stages.values()):.1e}", "1e-5")
            if parts := {k: v for k, v in errors.items() if k not in stages}:
                row(family, f"inside blocks {size}, rel", len(parts), f"{max(parts.values()):.1e}", "1e-5")
        step = train_step(case)
        row(family, "training loss, abs", 1, f"{step['loss']:.1e}", "5e-6")
        gradients = sorted(step["gradients"].values())
        middle = gradients[len(gradients) // 2]
        worst = f"{gradients[-1]:.1e} (median {middle:.1e})"
        row(family, "gradients of parameters, rel", len(gradients), worst, "1e-4")
        if family == "medmamba":
            row(
                family,
                "gradients that are zero (biases before batch norm), abs",
                10,
                f"{step['dead_gradient']:.1e}",
                "2e-6",
            )
            worst = f"{max(step['buffers'].values()):.1e}"
            row(family, "batch-norm statistics after the step, rel", len(step["buffers"]), worst, "5e-6")
            row(family, "gradient of the input 56x72, rel", 1, f"{input_gradient_error(load_case(family)):.1e}", "1e-4")


def on_meta(name: str, classes: int) -> torch.nn.Module:
    spec = expand_models([name])[0]
    with torch.device("meta"):
        return models[spec.name].build(num_classes=classes, in_chans=3, img_size=224, **dict(spec.options)).eval()


def count(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def parameters() -> None:
    print("\n## Parameters, and the public key files")
    head("model", "classes", "ours", "public code or paper", "equal", "its key file loads strictly")
    for name in ("tiny", "small", "base"):
        for family in FAMILIES:
            public = load_keys(f"{family}_{name}")
            model = on_meta(f"{family}_{name}", public["num_classes"])
            state = {e["key"]: torch.empty(e["shape"], device="meta") for e in public["keys"]}
            module = importlib.import_module(f"bench.models.{family}")
            model.load_state_dict(module.checkpoint_filter_fn(state, model), strict=True)
            ours, theirs = count(model), public["n_parameters"]
            row(
                f"{family}_{name}",
                public["num_classes"],
                f"{ours:,}",
                f"{theirs:,}",
                ours == theirs,
                f"{len(state)} keys",
            )
    for name, published in (("medmamba_small_d12", 23_557_480), ("medmamba_base_d16", 48_144_872)):
        ours = count(on_meta(name, 1000))
        row(name, 1000, f"{ours:,}", f"{published:,}", ours == published, "no public file")


def macs() -> None:
    reference = json.loads((FIXTURES / "flops.json").read_text())
    print("\n## Multiply-adds (10^9 MACs, one image; FLOPs are twice that)")
    head("model", "classes", *(f"{p} px" for p in PIXELS), "GFLOPs 224", "analytic 224", "difference", "published 224")
    for size in ("tiny", "small", "base"):
        model = on_meta(f"medmamba_{size}", 6)
        ours = {p: count_torch(model, (1, 3, p, p)).macs for p in PIXELS}
        sizes = reference["medmamba"][size]["sizes"]
        analytic = {p: sizes[str(p)]["analytic"]["total_mac"] for p in PIXELS}
        off = max(abs(ours[p] - analytic[p]) for p in PIXELS)
        figures = [f"{ours[p] / 1e9:.3f}" for p in PIXELS]
        published = models[f"medmamba_{size}"].macs_g_224
        row(f"medmamba_{size}", 6, *figures, f"{2 * ours[224] / 1e9:.3f}", f"{analytic[224] / 1e9:.3f}",
            f"{off} at all sizes", f"{published} G")  # fmt: skip
    for size in ("tiny", "small", "base"):
        model = on_meta(f"vmamba_{size}", 1000)
        ours = {p: count_torch(model, (1, 3, p, p)).macs for p in PIXELS}
        entry = reference["vmamba"][size]["sizes"]["224"]
        expected = entry["conv_linear_macs"] + 3 * entry["scan_9BLDN"] // 10
        figures = [f"{ours[p] / 1e9:.3f}" for p in PIXELS]
        published = models[f"vmamba_{size}"].macs_g_224
        row(f"vmamba_{size}", 1000, *figures, f"{2 * ours[224] / 1e9:.3f}", f"{expected / 1e9:.3f}",
            f"{abs(ours[224] - expected)} at 224", f"{published} G")  # fmt: skip
    for name in ("medmamba_small_d12", "medmamba_base_d16"):
        model = on_meta(name, 1000)
        ours = {p: count_torch(model, (1, 3, p, p)).macs for p in PIXELS}
        figures = [f"{ours[p] / 1e9:.3f}" for p in PIXELS]
        row(name, 1000, *figures, f"{2 * ours[224] / 1e9:.3f}", "", "", f"{models[name].macs_g_224} G")
    print(
        "\nWhy ours differ from the published figures: MedMamba's paper counts modules only (thop), so the x_proj and "
        "dt_proj products and the scan are missing (tiny: 2.02 G counted that way), and its S and B figures belong to "
        "stage-3 depths of 12 and 16, not 8 and 12. VMamba's figures add 9BLDN single operations of the scan to the "
        "multiply-adds of the rest; ours counts its multiply-adds (2 a state, 1 a channel)."
    )


def ablations() -> None:
    print("\n## Ablations (`--models ablations`): 1,000 classes, 224 px")
    head("variant", "parameters", "of the base", "MACs (10^9)", "of the base")
    base: tuple[int, int] | None = None
    for spec in expand_models(["ablations"]):
        model = on_meta(str(spec), 1000)
        figures = count(model), count_torch(model, (1, 3, 224, 224)).macs
        base = base or figures
        shares = [f"{figure / of:.1%}" for figure, of in zip(figures, base, strict=True)]
        row(f"`{spec}`", f"{figures[0]:,}", shares[0], f"{figures[1] / 1e9:.3f}", shares[1])


def compilation(inductor: bool) -> None:
    print("\n## torch.compile(fullgraph=True) on the CPU")
    head("network", "backend", "max difference of logits, abs", "graph breaks")
    for family, (_, network) in FAMILIES.items():
        model = network(depths=(1, 1, 2, 1), dims=(16, 32, 64, 128), num_classes=5).eval()
        images = torch.randn(2, 3, 64, 64)
        for backend in ("aot_eager", "inductor") if inductor else ("aot_eager",):
            torch._dynamo.reset()
            with torch.no_grad():
                explained = torch._dynamo.explain(model)(images)
                torch._dynamo.reset()
                compiled = torch.compile(model, fullgraph=True, backend=backend)
                off = float((compiled(images) - model(images)).abs().max())
            row(f"{family} (small)", backend, f"{off:.1e}", explained.graph_break_count)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fast", action="store_true", help="without inductor, which compiles for a minute or more")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    fixtures()
    parameters()
    macs()
    ablations()
    compilation(inductor=not arguments.fast)
