"""Files that are broken or meant to do harm end in a finding or in a refusal that says why, and take little memory."""

import gzip
import json
import resource
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luthier.data.read import DataFile, PackedTooFar, Unpacking
from luthier.errors import DataError
from luthier.gate.audit import Audit, audit
from luthier.gate.policy import Policy
from tests.gate.corpus import chat, clean

GOOD = json.dumps(clean(1)[0]).encode()


def end(path: Path, data: bytes) -> Audit | DataError:
    """The audit of a file, or the refusal."""
    path.write_bytes(data)
    try:
        return audit([str(path)], Policy(), path.parent / "out", workers=0)
    except DataError as error:
        return error


PIECES = st.one_of(
    st.binary(max_size=60),
    st.sampled_from(
        [
            GOOD,
            b"{",
            b"}",
            b"[",
            b"]",
            b'"',
            b",",
            b"\x00",
            b"\xff\xfe",
            b"\xef\xbb\xbf",
            b"\\ud800",
            b"NaN",
            b"a,b\n",
            b"\r",
        ]
    ),
    st.text(max_size=20).map(lambda text: json.dumps(chat(text, text)).encode()),
    st.text(max_size=20)
    .map(lambda text: chat(text, text))
    .map(lambda row: json.dumps(row, ensure_ascii=False).encode("utf-16", "surrogatepass")),
    st.text(max_size=20).map(lambda text: json.dumps(chat(text, "ä")).encode("latin-1")),
)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pieces=st.lists(PIECES, max_size=12),
    name=st.sampled_from(["a.jsonl", "a.json", "a.csv", "a.tsv", "a.txt", "a.parquet", "a.jsonl.gz", "a"]),
    packed=st.booleans(),
)
def test_any_bytes_end_in_a_finding_or_a_refusal(tmp_path: Path, pieces: list[bytes], name: str, packed: bool) -> None:
    data = b"\n".join(pieces)
    ended = end(tmp_path / name, gzip.compress(data) if packed else data)
    assert isinstance(ended, Audit) or str(tmp_path / name) in str(ended)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 400), byte=st.binary(min_size=1, max_size=3))
def test_a_damaged_parquet_or_gzip_file_is_said_to_be_damaged(tmp_path: Path, at: int, byte: bytes) -> None:
    whole = gzip.compress(b"\n".join([GOOD] * 50))
    end(tmp_path / "a.jsonl.gz", whole[:at] + byte + whole[at + 1 :])
    cut = end(tmp_path / "b.jsonl.gz", whole[: max(at % len(whole), 1)])
    assert isinstance(cut, DataError) or cut.decision == "blocked"


@pytest.mark.parametrize(
    "line",
    [
        b"[" * 100_000,
        b'{"messages":' * 5000,
        b'{"messages": [{"role": "user", "content": "'
        + b"a" * 3_000_000
        + b'"}, {"role": "assistant", "content": "b"}]}',
        b'{"text": ' + b"9" * 10_000 + b"}",
        json.dumps(chat("@" * 50_000, "." * 50_000)).encode(),
        json.dumps(chat("1-" * 50_000, "+1 " * 30_000)).encode(),
        json.dumps(chat("<" * 50_000, "](" * 30_000)).encode(),
        json.dumps(chat("\u200b" * 50_000, "\u202e" * 50_000)).encode(),
        json.dumps(chat("A" * 200_000 + "=", "\ud83d\ude00" * 20_000)).encode(),
    ],
    ids=["brackets", "objects", "long", "digits", "at", "numbers", "markup", "hidden", "blob"],
)
def test_hostile_lines_cost_linear_time(tmp_path: Path, line: bytes) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(b"\n".join([GOOD, line, GOOD]))
    found = audit([str(file)], Policy(), tmp_path / "out", workers=0)
    assert found.report["rows"] >= 2


def test_a_gzip_bomb_is_a_finding_and_is_not_unpacked(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.jsonl.gz"
    with gzip.open(bomb, "wb", compresslevel=9) as file:
        file.write(GOOD + b"\n")
        for _ in range(400):
            file.write(b" " * (1 << 20))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = audit([str(bomb)], Policy(), tmp_path / "out", workers=0)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert "packed_too_far" in {f.rule for f in found.findings} or found.decision == "blocked"
    assert grown < 600 << 20


def test_how_far_a_file_may_unpack_is_a_matter_of_the_policy(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress((GOOD + b"\n") * 400_000))
    with pytest.raises(PackedTooFar), DataFile(str(path), Unpacking(ratio=2)) as file:
        list(file.records())
    policy = Policy.model_validate({"rules": {"packed_too_far": {"gigabytes": 0.01}}})
    found = audit([str(path)], policy, tmp_path / "out", workers=0)
    assert "packed_too_far" in {f.rule for f in found.findings}
    assert found.decision == "blocked"
