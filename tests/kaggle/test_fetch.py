import hashlib
import io
import json
import os
import re
import stat
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from pipeline.errors import InputError
from pipeline.images.checksums import verify_checksums
from pipeline.kaggle.download import download_file
from pipeline.kaggle.fetch import BBBC038_FILES, fetch


def make_zip(entries, extra=b""):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return stream.getvalue() + extra


ZIP = make_zip({"a/images/a.png": os.urandom(300_000)})


class Server:
    """A file server on 127.0.0.1: `files` by path, and how it misbehaves. `asked` lists (path, Range)."""

    def __init__(self):
        self.files, self.asked = {}, []
        self.ranges, self.lengths, self.cut_at, self.failures = True, True, None, []
        self.dies_after = None
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                server.answer(self)

            def log_message(self, *arguments):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def answer(self, request):
        wanted = request.headers.get("Range")
        self.asked.append((request.path, wanted))
        if self.dies_after is not None and len(self.asked) > self.dies_after:
            request.send_error(503)
            return
        content = self.files.get(request.path)
        if self.failures or content is None:
            request.send_error(self.failures.pop(0) if self.failures else 404)
            return
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and self.ranges else 0
        if start and start >= len(content):
            request.send_response(416)
            request.send_header("Content-Range", f"bytes */{len(content)}")
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        request.send_response(206 if start else 200)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if self.lengths:
            request.send_header("Content-Length", str(len(content) - start))
        request.end_headers()
        end = len(content)
        if self.cut_at:
            end, self.cut_at = (start + self.cut_at.pop(0), self.cut_at)
        request.wfile.write(content[start:end])


@pytest.fixture
def server():
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


def sha(content):
    return hashlib.sha256(content).hexdigest()


def fixes(server, folder, **options):
    return fetch("fixes", folder, fixes_url=f"{server.url}master.zip", pause_s=0.01, **options)


def test_a_download_arrives_whole_and_is_recorded(server, tmp_path):
    server.files["/master.zip"] = ZIP
    (file,) = fixes(server, tmp_path / "data")
    assert file.new
    assert (tmp_path / "data" / "stage1_train.zip").read_bytes() == ZIP
    records = json.loads((tmp_path / "data" / "checksums.json").read_text())
    assert records == {"stage1_train.zip": {"sha256": sha(ZIP), "origin": f"{server.url}master.zip"}}
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["checksums.json", "stage1_train.zip"]
    assert verify_checksums(tmp_path / "data") == {"stage1_train.zip": sha(ZIP)}


def test_what_is_there_is_not_downloaded_again(server, tmp_path):
    server.files["/master.zip"] = ZIP
    fixes(server, tmp_path)
    (file,) = fixes(server, tmp_path)
    assert not file.new
    assert len(server.asked) == 1


def test_a_cut_connection_is_resumed(server, tmp_path):
    server.files["/master.zip"] = ZIP
    server.cut_at = [100_000, 50_000]
    fixes(server, tmp_path)
    assert [asked for _, asked in server.asked] == [None, "bytes=100000-", "bytes=150000-"]
    assert (tmp_path / "stage1_train.zip").read_bytes() == ZIP


def test_a_later_call_resumes_too(server, tmp_path):
    server.files["/master.zip"] = ZIP
    server.cut_at, server.dies_after = [100_000], 1
    with pytest.raises(InputError, match=r"503.* 2 times in a row.*100000 bytes there are kept"):
        fixes(server, tmp_path, attempts=2)
    server.dies_after = None
    fixes(server, tmp_path)
    assert server.asked[-1][1] == "bytes=100000-"
    assert (tmp_path / "stage1_train.zip").read_bytes() == ZIP


def test_a_server_without_ranges_starts_over(server, tmp_path):
    server.files["/master.zip"] = ZIP
    server.cut_at, server.ranges = [100_000], False
    fixes(server, tmp_path)
    assert [asked for _, asked in server.asked] == [None, "bytes=100000-"]
    assert (tmp_path / "stage1_train.zip").read_bytes() == ZIP


def test_a_server_that_always_cuts_is_given_up(server, tmp_path):
    server.files["/master.zip"] = ZIP
    server.cut_at, server.ranges = [100_000] * 50, False
    with pytest.raises(InputError, match="broke after 100000 of"):
        fixes(server, tmp_path, attempts=3)
    assert len(server.asked) == 4


def test_a_hiccup_of_the_server_is_survived(server, tmp_path):
    server.files["/master.zip"] = ZIP
    server.failures = [503, 429, 500]
    fixes(server, tmp_path)
    assert (tmp_path / "stage1_train.zip").read_bytes() == ZIP


def test_a_whole_partial_file_is_taken(server, tmp_path):
    server.files["/f"] = ZIP
    (tmp_path / "f.partial").write_bytes(ZIP)
    download_file(f"{server.url}f", tmp_path / "f.partial", attempts=2, pause_s=0.01)
    assert (tmp_path / "f.partial").read_bytes() == ZIP


def test_a_partial_file_that_is_too_long_is_dropped(server, tmp_path):
    server.files["/f"] = ZIP
    (tmp_path / "f.partial").write_bytes(ZIP + b"more")
    download_file(f"{server.url}f", tmp_path / "f.partial", attempts=2, pause_s=0.01)
    assert (tmp_path / "f.partial").read_bytes() == ZIP


def test_the_beginning_of_another_sources_file_is_not_continued(server, tmp_path):
    other = make_zip({"b/images/b.png": os.urandom(200_000)})
    server.files = {"/master.zip": ZIP, "/other.zip": other}
    server.cut_at, server.dies_after = [100_000], 1
    with pytest.raises(InputError):
        fixes(server, tmp_path, attempts=1)
    server.dies_after = None
    fetch("fixes", tmp_path, fixes_url=f"{server.url}other.zip")
    assert (tmp_path / "stage1_train.zip").read_bytes() == other


@pytest.mark.parametrize("code", [404, 403])
def test_a_refusal_ends_at_once(server, tmp_path, code):
    server.failures = [code]
    with pytest.raises(InputError, match=rf"master.zip: the server answers {code}"):
        fixes(server, tmp_path)
    assert len(server.asked) == 1
    assert list(tmp_path.iterdir()) == []


def test_no_server(tmp_path):
    with pytest.raises(InputError, match=r"no connection.*2 times in a row"):
        fetch("fixes", tmp_path, fixes_url="http://127.0.0.1:9/x.zip", attempts=2, pause_s=0.01)


@pytest.mark.parametrize("content", [b"<html>log in first</html>", ZIP[:200_000]])
def test_what_is_no_zip_does_not_arrive(server, tmp_path, content):
    server.files["/master.zip"], server.lengths = content, False
    with pytest.raises(InputError, match="no zip archive"):
        fixes(server, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_changed_file_is_refused_with_both_digests(server, tmp_path):
    server.files["/master.zip"] = ZIP
    fixes(server, tmp_path)
    changed = ZIP + b"x"
    (tmp_path / "stage1_train.zip").write_bytes(changed)
    for call in (lambda: fixes(server, tmp_path), lambda: verify_checksums(tmp_path)):
        with pytest.raises(InputError, match=rf"stage1_train.zip: its SHA-256 is {sha(changed)}, but {sha(ZIP)}"):
            call()
    assert (tmp_path / "stage1_train.zip").read_bytes() == changed


def test_a_file_that_comes_again_otherwise_is_refused(server, tmp_path):
    server.files["/master.zip"] = ZIP
    fixes(server, tmp_path)
    (tmp_path / "stage1_train.zip").unlink()
    assert verify_checksums(tmp_path) == {}
    server.files["/master.zip"] = make_zip({"a/images/other.png": "x"})
    with pytest.raises(InputError, match=sha(ZIP)):
        fixes(server, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checksums.json"]
    server.files["/master.zip"] = ZIP
    assert fixes(server, tmp_path)[0].new


def test_bbbc038_adds_to_fixes_and_fixes_does_not_pass_for_fetched(server, tmp_path):
    small = make_zip({"x/images/x.png": "y"})
    server.files = {f"/b/{name}": small if name.endswith("zip") else b"ImageId\n" for name in BBBC038_FILES}
    server.files["/master.zip"] = ZIP
    fixes(server, tmp_path)
    files = fetch("bbbc038", tmp_path, bbbc038_url=f"{server.url}b")
    assert [file.path.name for file in files] == list(BBBC038_FILES)
    assert [file.new for file in files] == [False, True, True, True, True, True]
    assert (tmp_path / "stage1_train.zip").read_bytes() == ZIP
    assert files[0].origin.endswith("master.zip")
    official = tmp_path / "official"
    fetch("bbbc038", official, bbbc038_url=f"{server.url}b/")
    with pytest.raises(InputError, match=r"there already, from .*/b/stage1_train.zip"):
        fixes(server, official)


def test_a_folder_is_copied(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "stage1_train.zip").write_bytes(ZIP)
    (source / "stage1_solution.csv").write_text("ImageId\n")
    (source / "notes.txt").write_text("no")
    for new in (True, False):
        files = fetch(str(source), tmp_path / "data")
        assert [file.path.name for file in files] == ["stage1_solution.csv", "stage1_train.zip"]
        assert all(file.new == new for file in files)
    names = sorted(path.name for path in (tmp_path / "data").iterdir())
    assert names == ["checksums.json", "stage1_solution.csv", "stage1_train.zip"]


def test_a_file_put_there_by_hand_is_recorded(server, tmp_path):
    (tmp_path / "stage1_train.zip").write_bytes(ZIP)
    (file,) = fixes(server, tmp_path)
    assert (file.new, file.origin) == (False, "found in place")
    assert verify_checksums(tmp_path) == {"stage1_train.zip": sha(ZIP)}


@pytest.mark.parametrize("source", ["nowhere", "", "bbbc039"])
def test_no_such_source(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        InputError, match=r"give `fixes`, `bbbc038`, `kaggle`, or a folder with any of stage1_train\.zip"
    ):
        fetch(source, tmp_path / "data")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["{", "[]", '{"a": 1}', '{"a": {"sha256": "x"}}'])
def test_broken_checksums(server, tmp_path, text):
    (tmp_path / "checksums.json").write_text(text)
    if text == "[]":
        (tmp_path / "checksums.json").write_text("[1]")
    with pytest.raises(InputError, match="not a table of checksums"):
        fixes(server, tmp_path)


@pytest.fixture
def kaggle(tmp_path, monkeypatch):
    """A kaggle client that copies the zip in $SERVED to where it is told; its calls are appended to $CALLS."""
    program = tmp_path / "bin" / "kaggle"
    program.parent.mkdir()
    program.write_text(
        f"#!{sys.executable}\n"
        "import os, shutil, sys\n"
        "open(os.environ['CALLS'], 'a').write(' '.join(sys.argv[1:]) + '\\n')\n"
        "if not os.path.exists(os.environ['SERVED']):\n"
        "    print('403 - Forbidden')\n"
        "    sys.exit(1)\n"
        "shutil.copy(os.environ['SERVED'], sys.argv[sys.argv.index('-p') + 1])\n"
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(program.parent))
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    monkeypatch.setenv("SERVED", str(tmp_path / "data-science-bowl-2018.zip"))
    return tmp_path


def test_kaggle_archive_of_archives(kaggle):
    solution = make_zip({"stage1_solution.csv": "ImageId\n", "__MACOSX/._stage1_solution.csv": "x"})
    served = make_zip({"stage1_train.zip": ZIP, "stage1_solution.csv.zip": solution})
    (kaggle / "data-science-bowl-2018.zip").write_bytes(served)
    files = fetch("kaggle", kaggle / "data")
    assert [file.path.name for file in files] == ["stage1_solution.csv", "stage1_train.zip"]
    assert (kaggle / "data" / "stage1_train.zip").read_bytes() == ZIP
    assert (kaggle / "data" / "stage1_solution.csv").read_text() == "ImageId\n"
    names = sorted(path.name for path in (kaggle / "data").iterdir())
    assert names == ["checksums.json", "stage1_solution.csv", "stage1_train.zip"]
    assert not any(file.new for file in fetch("kaggle", kaggle / "data"))
    (call,) = (kaggle / "calls").read_text().splitlines()
    assert call.startswith("competitions download -c data-science-bowl-2018 -p ")


@pytest.mark.parametrize(
    "entry",
    ["../stage1_test.zip", "/tmp/stage1_test.zip", "a/../../stage1_test.zip", "../out.zip", "..\\out.zip", ".."],
)
def test_kaggle_entries_do_not_climb_out(kaggle, entry):
    (kaggle / "data-science-bowl-2018.zip").write_bytes(make_zip({entry: ZIP, "stage1_train.zip": ZIP}))
    names = {file.path.name for file in fetch("kaggle", kaggle / "data")}
    assert names == ({"stage1_train.zip", "stage1_test.zip"} if "stage1_test" in entry else {"stage1_train.zip"})
    assert {path.name for path in (kaggle / "data").iterdir()} == names | {"checksums.json"}
    assert {path.name for path in kaggle.iterdir()} == {"bin", "calls", "data", "data-science-bowl-2018.zip"}


def test_a_broken_kaggle_archive_is_downloaded_again(kaggle):
    served = make_zip({"stage1_train.zip": ZIP})
    (kaggle / "data-science-bowl-2018.zip").write_bytes(served[:1000])
    with pytest.raises(InputError, match=r"data-science-bowl-2018\.zip: not a whole zip"):
        fetch("kaggle", kaggle / "data")
    assert list((kaggle / "data").iterdir()) == []
    damaged = bytearray(served)
    damaged[5000] ^= 1
    (kaggle / "data-science-bowl-2018.zip").write_bytes(damaged)
    with pytest.raises(InputError, match=r"data-science-bowl-2018\.zip/stage1_train\.zip: does not unpack"):
        fetch("kaggle", kaggle / "data")
    assert list((kaggle / "data").iterdir()) == []
    (kaggle / "data-science-bowl-2018.zip").write_bytes(served)
    assert fetch("kaggle", kaggle / "data")[0].new


def test_kaggle_refuses_or_is_missing(kaggle, monkeypatch):
    with pytest.raises(
        InputError, match=r"kaggle competitions download: 403 - Forbidden; accept the rules at https://"
    ):
        fetch("kaggle", kaggle / "data")
    monkeypatch.setenv("PATH", str(kaggle))
    monkeypatch.setattr(sys, "executable", str(kaggle / "python"))
    with pytest.raises(InputError, match=r"no such program.*pip install -c constraints.txt.*kaggle\.json"):
        fetch("kaggle", kaggle / "data")


@pytest.mark.parametrize(
    ("words", "shown", "cure"),
    [
        ("403 Client Error: Forbidden for url: https://www.kaggle.com/x", "403 Client Error", "accept the rules at"),
        (
            "401 Client Error: Unauthorized for url: https://www.kaggle.com/x",
            "401 Client Error",
            "make a new API token",
        ),
        ("You must authenticate before you can call the Kaggle API.\nFollow: https://x", "You must auth", "API token"),
        ("404 Client Error: Not Found for url: https://www.kaggle.com/x", "404 Client Error", "update the client"),
        ("429 Client Error: Too Many Requests", "429 Client Error", "again later"),
        (
            "HTTPSConnectionPool(host='www.kaggle.com', port=443): Max retries exceeded",
            "HTTPSConn",
            "check the connection",
        ),
        ("('Connection aborted.', ConnectionResetError(104, 'reset'))", "'Connection aborted", "check the connection"),
        ("Max retries exceeded: SSLError([SSL: CERTIFICATE_VERIFY_FAILED])", "Max retries", "REQUESTS_CA_BUNDLE"),
        ("Warning: chmod 600 ~/.kaggle/kaggle.json\nwhat is new", "what is new", "mend that, or update the client"),
        ("", "it fails, and says above why", "update the client"),
    ],
)
def test_what_the_client_says_is_passed_on_with_its_own_cure(kaggle, words, shown, cure):
    program = kaggle / "bin" / "kaggle"
    program.write_text(f"#!{sys.executable}\nprint({words!r})\nraise SystemExit(1)\n")
    with pytest.raises(InputError) as error:
        fetch("kaggle", kaggle / "data")
    message = str(error.value)
    assert message.startswith(f"kaggle competitions download: {shown}") or f": ({shown}" in message
    assert cure in message
    assert "\n" not in message
    assert ("accept the rules" in message) == words.startswith("403")
