"""The real kagglehub client against a server on this machine, with and without faults."""

import io
import json
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from conftest import write_data_set
from kagglehub import clients
from kagglesdk import kaggle_env

import data
import train
from membrane.errors import UserError
from membrane.io import kaggle_cache

LAYOUT = "unmodified-data/train"


class Handler(BaseHTTPRequestHandler):
    """Answers the two requests of a data set's download, and that for its archive."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append(self.path.rsplit("/", 1)[-1])
        if self.server.fault in (403, 404, 500):
            self.answer(self.server.fault, b'{"code": 1, "message": "so sorry"}')
        elif self.path.endswith("GetDataset"):
            self.answer(200, json.dumps({"currentVersionNumber": 1}).encode())
        else:
            location = f"http://localhost:{self.server.server_port}/archive.zip"
            self.answer(302, b"", Location=location)

    def do_GET(self):
        self.server.asked.append("archive")
        content, length = self.server.archive, len(self.server.archive)
        if self.server.fault == "garbage":
            return self.answer(200, b"<html>sign in</html>")
        if self.server.fault == "cut short":
            self.close_connection = True
            return self.answer(200, content[: length // 2], Content_Length=length)
        extra = {"Accept_Ranges": "bytes"}
        if wanted := self.headers.get("Range"):
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            extra["Content_Range"] = f"bytes {start}-{length - 1}/{length}"
            return self.answer(206, content[start:], **extra)
        self.answer(200, content, **extra)

    def answer(self, status, body, **headers):
        self.send_response(status)
        for name, value in ({"Content_Length": len(body)} | headers).items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


def pack(members):
    with io.BytesIO() as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members.items():
                archive.writestr(name, content)
        return file.getvalue()


@pytest.fixture(scope="module")
def members(tmp_path_factory):
    """The files of a small data set, as Kaggle's archive names them."""
    root = write_data_set(tmp_path_factory.mktemp("set"), count=3)
    files = [path for path in root.rglob("*") if path.is_file()]
    return {f"unmodified-data/{path.relative_to(root)}": path.read_bytes() for path in files}


@pytest.fixture
def server(members, monkeypatch, tmp_path):
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.fault, server.archive, server.asked = None, pack(members), []
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("KAGGLE_API_ENVIRONMENT", "LOCALHOST")
        monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "cache"))
        place = f"http://localhost:{server.server_port}"
        monkeypatch.setitem(kaggle_env._env_to_endpoint, kaggle_env.KaggleEnv.LOCAL, place)
        # it searches the call stack through every module that the other tests have loaded
        monkeypatch.setattr(clients, "get_user_agent", lambda: "kagglehub")
        yield server
        server.shutdown()


def load(tmp_path):
    return data.load_pairs(data.find_data_set(None, tmp_path / "synthetic"))


def check_good(server, tmp_path):
    pairs = load(tmp_path)
    assert pairs.names == ["slice_1", "slice_2", "slice_3"]
    asked = list(server.asked)
    assert len(load(tmp_path).names) == 3 and server.asked == asked  # from the cache now
    return asked


def outside(tmp_path):
    return {path.name for path in tmp_path.iterdir()} - {"cache"}


def test_the_data_set_is_downloaded_once(server, tmp_path):
    assert check_good(server, tmp_path) == ["GetDataset", "DownloadDataset", "archive"]


@pytest.mark.parametrize("fault, words", [
    (404, "404"), (403, "403"), (500, "500"), ("cut short", "cannot be downloaded"),
    ("garbage", "Unsupported archive type"),
])  # fmt: skip
def test_a_failed_download_is_reported_in_a_line_and_the_next_try_succeeds(
    server, tmp_path, capsys, fault, words
):
    server.fault = fault
    for _ in range(2):
        assert train.main(["--epochs", "1", "--output", str(tmp_path / "run")]) == 2
        lines = capsys.readouterr().err.splitlines()
        errors = [line for line in lines if line.startswith("train.py: error: ")]
        assert len(errors) == 1 and words in errors[0] and "--data DIR" in errors[0]
        assert not any("Traceback" in line for line in lines)
    assert outside(tmp_path) == set()
    server.fault = None
    check_good(server, tmp_path)


def test_half_a_download_in_the_cache_is_gone_on_with(server, tmp_path):
    home = tmp_path / "cache/datasets" / data.HANDLE
    home.mkdir(parents=True)
    (home / "1.archive").write_bytes(server.archive[:5000])
    (home / f"versions/1/{LAYOUT}/imgs").mkdir(parents=True)  # and half of it was unpacked once
    (home / f"versions/1/{LAYOUT}/imgs/slice_1.png").write_bytes(b"half")
    check_good(server, tmp_path)


def test_a_cache_that_cannot_be_written_is_reported(server, tmp_path, monkeypatch):
    monkeypatch.setenv("KAGGLEHUB_CACHE", "/proc/none")
    with pytest.raises(UserError, match="cannot be downloaded"):
        load(tmp_path)
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "cache"))
    check_good(server, tmp_path)


def without(members, *names):
    return {name: members[name] for name in members if not name.endswith(names)}


BAD = {
    "another layout": (lambda members: {"readme.txt": b"moved"}, "no labelled slices found"),
    "a missing label": (lambda members: without(members, "train/labels/slice_2.png"),
                        "slice_2 has no label"),
    "no labels": (lambda members: without(members, *(f"train/labels/slice_{i}.png" for i in "123")),
                  "no labelled slices"),
    "a damaged slice": (lambda members: members | {f"{LAYOUT}/imgs/slice_1.png": b"x"}, "slice_1"),
    "a bomb": (lambda members: members | {"a": bytes(2 * 10**7)}, "over 10,000,000"),
}  # fmt: skip


@pytest.mark.parametrize("fault", BAD)
def test_an_archive_of_something_else_is_refused_and_not_kept(
    server, members, tmp_path, monkeypatch, fault
):
    monkeypatch.setattr(kaggle_cache, "MAX_UNPACKED_BYTES", 10**7)
    spoil, words = BAD[fault]
    good, server.archive = server.archive, pack(spoil(members))
    with pytest.raises(UserError, match=words) as refusal:
        load(tmp_path)
    assert "--data DIR" in str(refusal.value)
    assert outside(tmp_path) == set()
    server.archive = good
    check_good(server, tmp_path)


def test_extra_files_do_no_harm_and_none_leaves_the_cache(server, members, tmp_path):
    climbing = {f"{'../' * 12}{tmp_path}/climbed.txt": b"x", f"{tmp_path}/climbed.txt": b"x"}
    climbing |= {"../climbed.txt": b"x", "notes.txt": b"x", "__MACOSX/._a.png": b"x"}
    server.archive = pack(members | climbing)
    check_good(server, tmp_path)
    assert outside(tmp_path) == set()
    assert not (tmp_path / "cache/climbed.txt").exists()
    images = data.find_data_set(None, tmp_path).images
    assert len(list(images.iterdir())) == 3 and np.isfinite(load(tmp_path).images[0]).all()
