"""`bench list datasets` in a narrow terminal: every column stays, nothing is cut."""

import io

import pytest
from rich.console import Console

from bench.cli.listing import print_datasets, print_models


@pytest.mark.parametrize(
    ("width", "heads", "line"),
    [
        (80, "ch  images px     licence", "5  3   1,600 28–224 CC BY 4.0"),
        (140, "train/val/test         sizes, px", "1,080/120/400          28, 64, 128, 224        CC BY 4.0"),
    ],
)
def test_sizes_and_licence_are_shown(width: int, heads: str, line: str):
    out = io.StringIO()
    print_datasets(Console(file=out, width=width))
    lines = out.getvalue().splitlines()
    assert heads in lines[0] and "…" not in out.getvalue()
    assert any(text.startswith("retinamnist") and text.rstrip().endswith(line) for text in lines)


def test_all_models_come_with_words_and_those_named_with_their_options():
    for names, shown, hidden in (
        (None, "words for several", "branch=both"),
        ({"medmamba_tiny"}, "branch=both", "words"),
    ):
        out = io.StringIO()
        print_models(Console(file=out, width=80), names)
        assert shown in out.getvalue() and hidden not in out.getvalue()
