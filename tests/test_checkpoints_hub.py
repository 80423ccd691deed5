"""From -m to a folder: paths, hub names in a cache as huggingface_hub lays it out, and every way it can fail."""

import http.server
import json
import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from genkit.checkpoints import open_checkpoint, read_config, resolve
from genkit.errors import BadFileError

FIXTURE = Path(__file__).parent / "fixtures" / "llama"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER = "f" * 40


def refused(*arguments, **options):
    with pytest.raises(BadFileError) as error:
        resolve(*arguments, **options)
    message = str(error.value)
    assert message.isprintable() and len(message) < 600, message
    return message


def fill_cache(cache, name="org/tiny-llama", commit=COMMIT, ref="main", leave_out=()):
    """The cache as it is after a download: blobs by hash, a snapshot of links to them, a ref."""
    repository = cache / ("models--" + name.replace("/", "--"))
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir(exist_ok=True)
    for file in ("config.json", "model.safetensors"):
        if file not in leave_out:
            blob = repository / "blobs" / f"{len(file):040x}"
            blob.write_bytes((FIXTURE / file).read_bytes())
            (snapshot / file).symlink_to(os.path.relpath(blob, snapshot))
    if ref:
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / ref).write_text(commit)
    return snapshot


@pytest.fixture
def cache(tmp_path, monkeypatch):
    from huggingface_hub import constants

    folder = tmp_path / "hub"
    folder.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.chdir(tmp_path)
    return folder


def test_a_folder_wins_over_the_hub(cache, tmp_path):
    fill_cache(cache)
    here = tmp_path / "org" / "tiny-llama"
    here.mkdir(parents=True)
    assert resolve("org/tiny-llama", offline=True) == Path("org/tiny-llama")
    assert resolve(str(here)) == here
    here.rmdir()
    assert resolve("org/tiny-llama", offline=True).name == COMMIT


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    assert resolve("~/model") == tmp_path / "model"


def test_cached_model_offline(cache):
    """Through the links to the weights themselves."""
    snapshot = fill_cache(cache)
    folder = resolve("org/tiny-llama", offline=True)
    assert folder == snapshot
    assert read_config(folder).model_type == "llama"
    with open_checkpoint(folder) as checkpoint:
        shape = checkpoint.tensors["model.norm.weight"].shape
        assert len(bytes(checkpoint.load("model.norm.weight", shape).bytes())) > 0


def test_revisions(cache):
    main = fill_cache(cache)
    tagged = fill_cache(cache, commit=OTHER, ref="v1.0")
    assert resolve("org/tiny-llama", offline=True) == main
    assert resolve("org/tiny-llama", revision="v1.0", offline=True) == tagged
    assert resolve("org/tiny-llama", revision=OTHER, offline=True) == tagged
    assert "org/tiny-llama (revision v2): no such folder here, and from the hub: not (wholly) in the cache" in refused(
        "org/tiny-llama", revision="v2", offline=True)
    for revision in ("../../etc", "/etc/passwd", "", "a b", "a\n", "-x", "x" * 300):
        message = refused("org/tiny-llama", revision=revision, offline=True)
        assert message.startswith("org/tiny-llama: revision ") and "is not a branch, tag or commit" in message


def test_not_cached_and_offline(cache):
    message = refused("org/absent", offline=True)
    assert message == (f"org/absent: no such folder here, and from the hub: not (wholly) in the cache {cache}, and "
                       f"offline; run once without --offline and HF_HUB_OFFLINE")


def test_offline_by_environment(tmp_path):
    """HF_HUB_OFFLINE and HF_HUB_CACHE count, as everywhere."""
    snapshot = fill_cache(tmp_path / "hub")
    code = textwrap.dedent("""
        import sys
        from genkit.checkpoints import resolve
        from genkit.errors import BadFileError
        print(resolve("org/tiny-llama"))
        try:
            resolve("org/absent")
        except BadFileError as error:
            print(error)
        """)
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "hub")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    first, second = done.stdout.splitlines()
    assert first == str(snapshot) and "and offline; run once without" in second, done.stderr


@pytest.mark.parametrize("name", [
    "absent", "./absent", "../absent", "/absent/model", "a/b/c", "org/../x", "org/a--b", "org/", "/x", "", "a\0b",
    "org/na me", "org/x\n", "http://host/org/x", "-org/x", "org/" + "x" * 97])
def test_what_is_neither_folder_nor_hub_name(cache, name):
    message = refused(name) if name else refused("absent")
    assert "no such folder, and not a hub name (org/name)" in message


@pytest.mark.parametrize("file, words", [
    ("model.safetensors", "give the folder it is in"),
    ("pytorch_model.bin", "pickle weights can run code"), ("README.md", "is not a folder")])
def test_a_file_in_place_of_a_folder(tmp_path, file, words):
    (tmp_path / file).write_bytes(b"x")
    message = refused(str(tmp_path / file))
    assert message.startswith(f"{tmp_path / file}: ") and words in message


def test_unreachable_paths(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "gone").symlink_to("nowhere")
    assert str(tmp_path / "gone") in refused(str(tmp_path / "gone"))
    assert str(tmp_path / "loop") in refused(str(tmp_path / "loop"))
    assert "name too long" in refused("x" * 300)


class Hub(http.server.BaseHTTPRequestHandler):
    """Speaks as much of the hub's protocol as a download of small files needs; `answers` says what goes wrong."""

    protocol_version = "HTTP/1.1"
    answers: dict = {}
    requests: list = []
    files: dict = {}

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.split("?")[0]
        self.requests.append(path)
        status, headers, body = 404, {"X-Error-Code": "EntryNotFound"}, b"{}"
        if "status" in self.answers:
            status, headers = self.answers["status"]
        elif path.startswith("/api/models/org/tiny-llama/tree/"):
            status, headers = 200, {}
            body = json.dumps([{"type": "file", "path": name, "size": len(data), "oid": f"{len(data):040x}"}
                               for name, data in self.files.items()]).encode()
        elif path.startswith("/api/models/org/tiny-llama"):
            status, headers = 200, {}
            body = json.dumps({"id": "org/tiny-llama", "sha": COMMIT, "private": False, "tags": [], "downloads": 0,
                               "siblings": [{"rfilename": name} for name in self.files]}).encode()
        elif path.startswith(f"/org/tiny-llama/resolve/{COMMIT}/"):
            name = path.split(f"{COMMIT}/")[1]
            if name in self.files:
                status, body = 200, self.files[name]
                headers = {"ETag": f'"{len(body):040x}"', "X-Repo-Commit": COMMIT}
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")  # closes it; unsaid, a client may ask on a connection that is about to go
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


@pytest.fixture
def hub(cache):
    """A hub on this machine, and a function that resolves against it in a fresh process."""
    Hub.answers, Hub.requests = {}, []
    Hub.files = {"config.json": (FIXTURE / "config.json").read_bytes(), "tokenizer.model": b"spm",
                 "model.safetensors": (FIXTURE / "model.safetensors").read_bytes(), "merges.txt": b"#", "a.jinja": b"x",
                 "pytorch_model.bin": b"pickle", "original/params.json": b"{}", "onnx/model.safetensors": b"x",
                 "consolidated.safetensors": b"x", "README.md": b"hello", "run.py": b"print()"}
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    environment |= {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HUB_CACHE": str(cache),
                    "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}

    def run(*arguments, **options):
        code = textwrap.dedent("""
            import sys
            from genkit.checkpoints import resolve
            from genkit.errors import Error
            try:
                print(resolve(*eval(sys.argv[1]), **eval(sys.argv[2])))
            except Error as error:
                print(type(error).__name__, error)
            """)
        done = subprocess.run([sys.executable, "-c", code, repr(arguments), repr(options)], capture_output=True,
                              text=True, timeout=120, env=environment)
        assert "Traceback" not in done.stderr, done.stderr
        assert done.stdout.count("\n") == 1, done.stdout + done.stderr
        run.stderr = done.stderr
        return done.stdout.rstrip("\n")

    run.environment = environment
    yield run
    server.shutdown()
    server.server_close()


def test_download_takes_only_what_a_model_is_read_from(hub, cache):
    folder = Path(hub("org/tiny-llama", progress=True))
    assert folder == cache / "models--org--tiny-llama" / "snapshots" / COMMIT
    assert sorted(str(file.relative_to(folder)) for file in folder.rglob("*")) == [
        "a.jinja", "config.json", "merges.txt", "model.safetensors", "tokenizer.model"]
    assert (folder / "model.safetensors").read_bytes() == Hub.files["model.safetensors"]
    assert "%|" not in hub.stderr  # no bars where stderr is no terminal
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.nbytes > 1000
    # And from then on without the network.
    Hub.requests.clear()
    assert hub("org/tiny-llama", offline=True) == str(folder)
    assert Hub.requests == []


@pytest.mark.parametrize("status, headers, words", [
    (404, {"X-Error-Code": "RepoNotFound"}, "not found; check the name, or `hf auth login` if it is private"),
    (401, {"X-Error-Code": "RepoNotFound"}, "not found; check the name"),
    (403, {"X-Error-Code": "GatedRepo"}, "gated: accept its terms on its page, then `hf auth login`"),
    (404, {"X-Error-Code": "RevisionNotFound"}, "there is no such revision"),
    (500, {}, "it answers: "), (418, {}, "418")])
def test_what_the_hub_may_answer(hub, status, headers, words):
    Hub.answers = {"status": (status, headers)}
    message = hub("org/tiny-llama", revision="v9")
    assert message.startswith("BadFileError org/tiny-llama (revision v9): no such folder here, and from the hub: ")
    assert words in message, message


def test_no_network(hub):
    hub.environment["HF_ENDPOINT"] = "http://127.0.0.1:9"  # the discard port: nothing listens
    message = hub("org/tiny-llama")
    assert message.startswith("BadFileError org/tiny-llama: no such folder here, and from the hub: cannot be reached")
    assert "check the network, or give a folder" in message


def test_cached_model_without_network(hub, cache):
    """A known model works when the hub is away, with no --offline."""
    snapshot = fill_cache(cache)
    hub.environment["HF_ENDPOINT"] = "http://127.0.0.1:9"
    assert hub("org/tiny-llama") == str(snapshot)


def test_connection_that_breaks(hub):
    """Ends in the middle of a file: the error of the HTTP client does not come through."""
    good = Hub.files["model.safetensors"]

    class Cut(bytes):
        def __len__(self):
            return len(good) + 5000

    Hub.files = {"model.safetensors": Cut(good)}
    message = hub("org/tiny-llama")
    assert message.startswith("BadFileError org/tiny-llama: no such folder here, and from the hub: ")
    assert "peer closed connection" in message or "IncompleteRead" in message


def test_cache_that_cannot_be_written(hub, tmp_path):
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where the cache should be")
    hub.environment["HF_HUB_CACHE"] = str(blocked / "hub")
    message = hub("org/tiny-llama")
    assert message == (f"ResourceError org/tiny-llama: the download cannot be written to {blocked}/hub: "
                       f"Not a directory; set HF_HUB_CACHE to a folder that can be")
