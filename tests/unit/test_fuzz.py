"""A short part of `python -m benchmarks.fuzz`: no damaged input file is more than a sentence."""

from pathlib import Path

import pytest

from benchmarks.fuzz import KINDS, fuzz
from internalize.records import Task, content_hash, json_value

SEEDS = {
    "run": 6,
    "page": 60,
    "model": 6,
    "adapter": 20,
    "gguf": 4,
}  # slow to read


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_a_damaged_file_of_this_kind_is_read_or_refused(name: str, tmp_path: Path) -> None:
    found = fuzz(name, iter(range(SEEDS.get(name, 120))), tmp_path / "f")
    assert found.files > 0
    assert found.first == {}


def test_half_of_a_surrogate_pair_is_no_value_and_breaks_no_hash() -> None:
    for text in ('{"a": "\\ud800"}', b'["\\udfff x"]'):
        with pytest.raises(ValueError, match="surrogates not allowed"):
            json_value(text, encodable=True)
    assert json_value('"\\ud83d\\ude00"') == "\U0001f600"
    assert Task.new("e", "train", "\ud800").id == content_hash(["e", "\ud800", None, {}])
