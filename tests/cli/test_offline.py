"""What a user without a network is told, and how soon."""

import socket
import time
from pathlib import Path

import pytest

from bench.cli.main import main

RUN = ["run", "--models", "all", "--datasets", "medmnist"]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[float]:
    """No name resolves, there is no bench.toml and no data; gives the pauses that were asked for."""
    pauses: list[float] = []

    def unresolved(*args: object, **kwargs: object) -> None:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", unresolved)
    monkeypatch.setattr(time, "sleep", pauses.append)
    monkeypatch.setenv("MEDBENCH_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    return pauses


def test_run_says_in_a_few_lines_what_is_missing_and_what_to_type(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(RUN) == 2
    said = capsys.readouterr().err
    lines = said.splitlines()
    assert len(lines) <= 14 and max(map(len, lines[1:])) <= 80, said
    assert f"missing from {tmp_path / 'data'}:" in lines[0] and "pathmnist.npz" in said and "organsmnist.npz" in said
    assert "There is no network: zenodo.org cannot be resolved." in lines
    assert "  bench fetch --datasets medmnist --sizes 28" in lines
    assert "  bench run --models all --datasets medmnist --skip-missing" in lines
    assert "efficiency cells" in said and "--data-root DIR" in said
    assert "https://" not in said and "MD5 expected" not in said and lines[-1].endswith("--verbose")


def test_verbose_adds_links_and_checksums(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*RUN, "-v"]) == 2
    said = capsys.readouterr().err
    assert "  from          https://zenodo.org/records/10519652/files/pathmnist.npz" in said
    assert "  MD5 expected  a8b06965200029087d5bd730944a56c1" in said  # as MedMNIST publishes it


def test_fetch_gives_up_at_once(no_network: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fetch", "--datasets", "medmnist"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("bench: zenodo.org: the host name cannot be resolved; is there a network?")
    assert "organsmnist.npz" in said and len(said.splitlines()) < 7 and not no_network
