"""Verification and download, against a real HTTP server on this machine that misbehaves on request."""

from __future__ import annotations

import hashlib
import os
import re
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench import registry
from bench.data import checksums, files
from bench.data.download import UnreachableError
from bench.data.files import DataError, FetchError, Problem, check, fetch, missing_details, missing_message, preflight
from bench.registry import RemoteFile

BLOCK = 1 << 16  # what a cut may lose
CONTENT = bytes(i * 7 % 251 for i in range(20 * BLOCK))


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


@dataclass
class Server:
    """What the server does, and the requests it saw."""

    content: bytes = CONTENT
    ranges: bool = True
    cuts: list[int] = field(default_factory=list)  # bytes to send before hanging up, one entry a request
    statuses: list[int] = field(default_factory=list)  # answered before anything else, one entry a request
    headers: dict[str, str] = field(default_factory=dict)  # sent with those answers
    shifted: bool = False  # answer every range from byte 0, and say so
    asked: list[str | None] = field(default_factory=list)
    agents: list[str] = field(default_factory=list)
    stalls: bool = False  # accept the request and say nothing
    released: threading.Event = field(default_factory=threading.Event)
    url: str = ""


@pytest.fixture
def server():
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args):
            pass

        def do_GET(self):
            wanted = self.headers.get("Range")
            state.asked.append(wanted)
            state.agents.append(self.headers.get("User-Agent", ""))
            if state.stalls:
                state.released.wait(5)
                self.close_connection = True
                return
            if state.statuses:
                self.answer(state.statuses.pop(0), {"Content-Length": "0", **state.headers})
                return
            start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and state.ranges else 0
            if start and start >= len(state.content):
                self.answer(416, {"Content-Length": "0"})
                return
            start = 0 if state.shifted else start
            body = state.content[start:]
            partial = {"Content-Range": f"bytes {start}-{len(state.content) - 1}/{len(state.content)}"}
            ranged = bool(wanted) and state.ranges
            self.answer(206 if ranged else 200, {"Content-Length": str(len(body)), **(partial if ranged else {})})
            if state.cuts:
                body = body[: state.cuts.pop(0)]
                self.close_connection = True
            self.wfile.write(body)

        def answer(self, status: int, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()

    class Silent(ThreadingHTTPServer):
        def handle_error(self, request, client_address):  # the client hung up, as some tests make it
            pass

    httpd = Silent(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, daemon=True, kwargs={"poll_interval": 0.01})
    thread.start()
    state.url = f"http://127.0.0.1:{httpd.server_address[1]}/x.npz"
    yield state
    state.released.set()
    httpd.shutdown()
    httpd.server_close()


def remote(server: Server, content: bytes = CONTENT, name: str = "x.npz") -> RemoteFile:
    return RemoteFile(name, server.url, md5(content))


def quick(*args, **kwargs):
    return fetch(*args, pause_s=0.001, **kwargs)


def test_fetch_writes_the_file_and_reports_progress(server, tmp_path):
    seen = []
    (path,) = quick([remote(server)], tmp_path / "new" / "root", lambda *event: seen.append(event))
    assert path.read_bytes() == CONTENT
    assert seen[-1] == ("x.npz", len(CONTENT), len(CONTENT))
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)
    assert "medbench" in server.agents[0] and "Mozilla" not in server.agents[0]
    assert not list(path.parent.glob("*.part*"))


def test_an_intact_file_is_left_alone_even_in_a_folder_one_cannot_write(server, tmp_path):
    (tmp_path / "x.npz").write_bytes(CONTENT)
    before = sorted(os.listdir(tmp_path))
    assert quick([remote(server)], tmp_path) == [tmp_path / "x.npz"]
    assert server.asked == [] and sorted(os.listdir(tmp_path)) == before


def test_a_cut_connection_is_resumed_where_it_ended(server, tmp_path):
    server.cuts = [2 * BLOCK + 9, 0, BLOCK]
    (path,) = quick([remote(server)], tmp_path)
    assert path.read_bytes() == CONTENT
    assert server.asked == [None, *(f"bytes={n * BLOCK}-" for n in (2, 2, 3))]


def test_progress_made_renews_the_patience(server, tmp_path):
    server.cuts = [BLOCK] * 12  # more cuts than attempts
    (path,) = quick([remote(server)], tmp_path, attempts=2)
    assert path.read_bytes() == CONTENT and len(server.asked) == 13


def test_the_next_call_goes_on_from_what_was_kept(server, tmp_path):
    server.cuts = [2 * BLOCK, 0, 0]
    with pytest.raises(FetchError, match=f"{2 * BLOCK:,} bytes are kept"):
        quick([remote(server)], tmp_path, attempts=3)
    assert not (tmp_path / "x.npz").exists()
    (path,) = quick([remote(server)], tmp_path)
    assert server.asked[-1] == f"bytes={2 * BLOCK}-" and path.read_bytes() == CONTENT


def test_a_server_without_ranges_is_read_from_the_start(server, tmp_path):
    server.ranges, server.cuts = False, [BLOCK]
    (path,) = quick([remote(server)], tmp_path)
    assert path.read_bytes() == CONTENT


def test_a_wrong_range_is_not_appended(server, tmp_path):
    server.cuts, server.shifted = [BLOCK], True
    with pytest.raises(FetchError, match=f"asked for bytes from {BLOCK}, was sent 'bytes 0-"):
        quick([remote(server)], tmp_path)


def test_remains_of_another_version_are_replaced(server, tmp_path):
    for remains in (b"?" * 1000, b"?" * len(CONTENT), b"?" * (len(CONTENT) + 5)):
        (tmp_path / ".x.npz.part").write_bytes(remains)
        (path,) = quick([remote(server)], tmp_path)
        assert path.read_bytes() == CONTENT
        path.unlink()


def test_a_complete_part_only_needs_its_name(server, tmp_path):
    (tmp_path / ".x.npz.part").write_bytes(CONTENT)
    (path,) = quick([remote(server)], tmp_path)
    assert path.read_bytes() == CONTENT and server.asked == [f"bytes={len(CONTENT)}-"]


def test_wrong_bytes_never_take_the_name(server, tmp_path):
    server.content = b"<html>sign in to the hospital network</html>"
    with pytest.raises(FetchError) as caught:
        quick([remote(server)], tmp_path)
    assert md5(server.content) in str(caught.value) and md5(CONTENT) in str(caught.value)
    assert server.url in str(caught.value)
    assert not list(tmp_path.glob("*.npz")) and not list(tmp_path.glob(".*.part"))


def test_a_damaged_file_is_replaced_only_by_a_good_one(server, tmp_path):
    path = tmp_path / "x.npz"
    path.write_bytes(b"damaged")
    server.statuses = [404]
    with pytest.raises(FetchError, match="404"):
        quick([remote(server)], tmp_path)
    assert path.read_bytes() == b"damaged"
    quick([remote(server)], tmp_path)
    assert path.read_bytes() == CONTENT


def test_busy_servers_are_asked_again_refusals_are_not(server, tmp_path):
    server.statuses, server.headers = [503, 429], {"Retry-After": "0"}
    assert quick([remote(server)], tmp_path)[0].read_bytes() == CONTENT
    for status in (404, 403):
        server.statuses, server.asked = [status], []
        with pytest.raises(FetchError, match=f"{server.url}: the server answered {status}"):
            quick([remote(server, name="y.npz")], tmp_path)
        assert len(server.asked) == 1
    server.statuses = [503] * 9
    with pytest.raises(FetchError, match=r"answered 503 \(3 attempts in a row\)"):
        quick([remote(server, name="y.npz")], tmp_path, attempts=3)


def test_no_server_and_no_name(tmp_path):
    closed = RemoteFile("x.npz", "http://127.0.0.1:9/x.npz", md5(CONTENT))
    with pytest.raises(FetchError, match=r"x.npz: http://127.0.0.1:9/x.npz: no connection to the host"):
        quick([closed], tmp_path, attempts=2)
    with pytest.raises(FetchError, match="the host name cannot be resolved"):
        quick([closed._replace(url="http://nowhere.invalid/x.npz")], tmp_path, attempts=1)
    with pytest.raises(FetchError, match="gopher"):
        quick([closed._replace(url="gopher://nowhere.invalid/x.npz")], tmp_path)


def test_a_server_that_stalls_is_not_waited_for(server, tmp_path, monkeypatch):
    monkeypatch.setattr("bench.data.download._TIMEOUT_S", (0.2, 0.2))
    server.stalls = True
    with pytest.raises(FetchError, match="the server did not answer in time"):
        quick([remote(server)], tmp_path, attempts=1)


def test_without_a_network_only_the_first_file_is_tried_patiently(tmp_path, monkeypatch):
    pauses = []
    monkeypatch.setattr("time.sleep", pauses.append)
    wanted = [RemoteFile(f"{n}.npz", f"http://127.0.0.1:9/{n}", md5(CONTENT)) for n in range(12)]
    with pytest.raises(FetchError) as caught:
        fetch(wanted, tmp_path, attempts=4, pause_s=1)
    assert pauses == [1, 2, 4] and isinstance(caught.value, UnreachableError)
    said = str(caught.value)
    assert said.startswith("127.0.0.1: no connection to the host") and all(f"{n}.npz" in said for n in range(12))
    assert len(said.splitlines()) < 4


def test_where_no_name_resolves_it_is_asked_once_and_not_again(tmp_path, monkeypatch):
    asked, pauses = [], []

    def no_network(host, *args, **kwargs):
        asked.append(host)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    monkeypatch.setattr("time.sleep", pauses.append)
    (tmp_path / "5.npz").write_bytes(CONTENT)
    wanted = [RemoteFile(f"{n}.npz", f"https://data.example.org/{n}", md5(CONTENT)) for n in range(12)]
    with pytest.raises(UnreachableError) as caught:
        fetch(wanted, tmp_path)
    assert asked == ["data.example.org"] and pauses == []
    said = str(caught.value)
    assert said.startswith("data.example.org: the host name cannot be resolved") and "11.npz" in said
    assert "5.npz," not in said.replace("15.npz", "")  # that one is here


def test_a_server_that_only_ever_sends_a_part_is_given_up(server, tmp_path):
    server.ranges, server.cuts = False, [BLOCK, 3 * BLOCK] * 50
    with pytest.raises(FetchError, match=r"\(4 attempts in a row\)"):
        quick([remote(server)], tmp_path, attempts=4)
    assert len(server.asked) < 10


def test_all_failures_are_told_and_the_rest_is_fetched(server, tmp_path):
    good = remote(server, name="good.npz")
    bad = [RemoteFile(name, "http://127.0.0.1:9/" + name, md5(CONTENT)) for name in ("a.npz", "b.npz")]
    with pytest.raises(FetchError) as caught:
        quick([bad[0], good, bad[1]], tmp_path, attempts=1)
    assert "a.npz" in str(caught.value) and "b.npz" in str(caught.value) and "good" not in str(caught.value)
    assert (tmp_path / "good.npz").read_bytes() == CONTENT


def test_a_full_disk_is_said_before_the_download(server, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(FetchError, match=r"needs 0.0 GB in .*, which has 0.0 GB free"):
        quick([remote(server)], tmp_path)


def test_a_root_that_cannot_be_made(server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FetchError, match="cannot write to"):
        quick([remote(server)], tmp_path / "file" / "root")


@pytest.mark.parametrize("name", ["../x.npz", "/etc/x.npz", "a/../../x", "a\\..\\x", ""])
def test_names_cannot_lead_out_of_the_root(tmp_path, name):
    with pytest.raises(ValueError, match="outside of the data root"):
        check([RemoteFile(name, "http://127.0.0.1/", "")], tmp_path)


def test_processes_that_fetch_at_once_get_one_good_file(server, tmp_path):
    server.cuts = [3 * BLOCK, 3 * BLOCK, 3 * BLOCK]
    code = (
        "import sys; from pathlib import Path; from bench.data.files import fetch;"
        "from bench.registry import RemoteFile;"
        "fetch([RemoteFile('x.npz', sys.argv[1], sys.argv[2])], Path(sys.argv[3]), pause_s=.001)"
    )
    command = [sys.executable, "-c", code, server.url, md5(CONTENT), str(tmp_path)]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    for process in running:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    assert (tmp_path / "x.npz").read_bytes() == CONTENT
    assert len(server.asked) == 4  # one download with its three resumptions: the others found the file


# --- verifying -------------------------------------------------------------------------------------------------


def test_check_names_missing_damaged_and_unreadable(tmp_path):
    wanted = [RemoteFile(f"{name}.npz", f"http://host/{name}", md5(CONTENT)) for name in ("good", "bad", "gone", "dir")]
    (tmp_path / "good.npz").write_bytes(CONTENT)
    (tmp_path / "bad.npz").write_bytes(CONTENT[:-1])
    (tmp_path / "dir.npz").mkdir()
    problems = check(wanted, tmp_path)
    assert [(p.file.name, p.reason, p.found_md5) for p in problems] == [
        ("bad.npz", "damaged", md5(CONTENT[:-1])),
        ("gone.npz", "missing", None),
        ("dir.npz", "unreadable", None),
    ]
    assert missing_message(problems).splitlines() == [
        f"1 data file is missing from {tmp_path}:",
        "  gone.npz",
        f"{tmp_path}/bad.npz is damaged: its MD5 is not the published one; remove it to have it downloaded again",
        f"{tmp_path}/dir.npz is unreadable: Is a directory",
    ]
    details = missing_details(problems)
    for problem in problems:
        assert problem.file.url in details and str(problem.path) in details
    assert md5(CONTENT) in details and md5(CONTENT[:-1]) in details


def test_a_file_is_hashed_once_and_again_when_it_changed(tmp_path, monkeypatch):
    path, wanted = tmp_path / "x.npz", RemoteFile("x.npz", "http://host/x", md5(CONTENT))
    path.write_bytes(CONTENT)
    hashed = []
    plain = checksums._hash
    monkeypatch.setattr(checksums, "_hash", lambda path: (hashed.append(1), plain(path))[1])
    assert check([wanted], tmp_path) == check([wanted], tmp_path) == [] and len(hashed) == 1
    status = path.stat()
    path.write_bytes(CONTENT[:-1] + b"!")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # same size, same time of change
    assert [p.reason for p in check([wanted], tmp_path)] == ["damaged"] and len(hashed) == 2


def test_preflight_lists_every_file_once_with_its_dataset(tmp_path):
    medmnist = [registry.datasets[name] for name in registry.datasets.expand("medmnist")]
    wanted = [(info, size) for info in medmnist for size in (28, 224)]
    (tmp_path / "breastmnist.npz").write_bytes(b"half a download")
    problems = preflight([*wanted, *wanted, (registry.datasets["phantom_local"], 64)], tmp_path)
    assert len(problems) == 24
    assert [p.found_md5 for p in problems if p.reason == "damaged"] == [md5(b"half a download")]
    details = missing_details(problems)
    assert details.count("put it at") == 24 and details.count("https://zenodo.org/records/10519652/files/") == 24
    message = missing_message(problems)
    assert f"bench fetch --datasets medmnist --sizes 28,224 --data-root {tmp_path}" in message
    assert "23 data files are missing" in message and "and 11 more" in message and len(message.splitlines()) < 10
    assert "pathmnist at 28 pixels" in str(problems[0])


def test_fetch_datasets_checks_names_and_sizes(tmp_path):
    with pytest.raises(registry.RegistryError, match="did you mean 'breastmnist'"):
        files.fetch_datasets(["brestmnist"], [28], tmp_path)
    with pytest.raises(registry.RegistryError, match="breastmnist has no size 32; it exists in 28, 64, 128, 224"):
        files.fetch_datasets(["breastmnist"], [32], tmp_path)
    assert files.fetch_datasets(["phantoms"], [32], tmp_path) == []


def test_fetch_datasets_downloads_into_the_root(server, tmp_path, monkeypatch):
    info = registry.datasets["breastmnist"]
    adapter = type(info.open())
    monkeypatch.setattr(adapter, "files", lambda self, size: (remote(server, name=f"{self.info.name}_{size}.npz"),))
    paths = files.fetch_datasets(["breastmnist", "retinamnist"], [28, 64], tmp_path)
    assert [p.name for p in paths] == [
        "breastmnist_28.npz", "breastmnist_64.npz", "retinamnist_28.npz", "retinamnist_64.npz",
    ]  # fmt: skip


def test_default_root(monkeypatch, tmp_path):
    monkeypatch.setenv("MEDBENCH_DATA", str(tmp_path))
    assert files.default_root() == tmp_path
    monkeypatch.delenv("MEDBENCH_DATA")
    assert files.default_root().name == "medbench"


def test_errors_share_a_base():
    problem = Problem(RemoteFile("x", "u", "m"), Path("x"), "missing")
    assert isinstance(files.MissingFilesError([problem]), DataError) and issubclass(FetchError, DataError)
    assert files.MissingFilesError([problem]).problems == (problem,)
