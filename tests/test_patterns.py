"""Globs, braces and URLs to shards."""

from pathlib import Path

import pytest

from dd_tasks import shards
from dd_tasks.errors import InputError


@pytest.mark.parametrize(
    ("patterns", "found"),
    [
        (["*.tar"], "a-00 a-01 b"),
        (["a-{00..01}.tar"], "a-00 a-01"),
        (["{b,a-00}.tar"], "a-00 b"),
        (["b.tar", "*.tar", "./b.tar"], "a-00 a-01 b"),
        (["a-0[1].tar", "b.tar"], "a-01 b"),
    ],
)
def test_patterns_expand_sorted_and_once(tmp_path, monkeypatch, patterns, found):
    monkeypatch.chdir(tmp_path)
    for name in ("b", "a-01", "a-00"):
        (tmp_path / f"{name}.tar").touch()
    assert " ".join(Path(url).stem for url in shards.expand(patterns)) == found


def test_urls_expand_by_braces_without_being_opened():
    assert shards.expand(["https://h.test/x-{00..01}.tar?sig=1", "s3://b/{a,b}.tar"]) == (
        "https://h.test/x-00.tar?sig=1", "https://h.test/x-01.tar?sig=1", "s3://b/a.tar", "s3://b/b.tar",
    )  # fmt: skip


@pytest.mark.parametrize("pattern", ["*.tar", "a-{0..1}.tar", "none.tar", ".", "a-{0.tar"])
def test_a_pattern_that_finds_nothing_is_named(tmp_path, monkeypatch, pattern):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as error:
        shards.expand([pattern])
    assert pattern.split("{")[0] in str(error.value) and "\n" not in str(error.value)


def test_a_string_is_not_a_list_of_patterns():
    with pytest.raises(InputError, match="list"):
        shards.expand("x.tar")


@pytest.mark.parametrize(
    "pattern", ["{0..99999999999}.tar", "{0..-9999999}.tar", "{0..9}" * 7 + ".tar", "{a,b}{0..999999..1}.tar"]
)
def test_a_pattern_of_more_names_than_there_are_shards_is_not_written_out(pattern):
    with pytest.raises(InputError, match=r"stands for more than 1,048,576 shards$"):
        shards.expand([pattern])


def test_a_large_pattern_is_taken():
    assert len(shards.expand(["s3://b/{000000..099999}-{a,b}.tar"])) == 200_000
