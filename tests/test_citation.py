"""What to cite: every preset has its papers, and BibTeX survives any name."""

import pytest
from sample import draft

from dd_tasks import citation, presets


def test_every_preset_stands_on_papers() -> None:
    assert set(citation.STANDS_ON) == {**presets.PRESETS, **presets.LARGE}.keys()
    assert {key for keys in citation.STANDS_ON.values() for key in keys} == set(citation.PAPERS)


@pytest.mark.parametrize("key", citation.PAPERS)
def test_a_method_is_named_as_in_its_preset(key: str) -> None:
    assert (presets.PRESETS[key].__doc__ or "").startswith(f"{citation.PAPERS[key].name}:")


@pytest.mark.parametrize(
    ("preset", "keys"),
    [
        ("cda", ["cda", "sre2l"]),
        ("clom", ["clom", "dream_plus"]),
        ("clom(e2d)", ["clom", "e2d", "edc"]),
        ("clom(e2d, convnet3@epoch=2,4 seeds=0..2)", ["clom", "e2d", "edc"]),
        ("clom(our:method)", ["clom"]),
        ("our_methods:with_margin", []),
        ("", []),
    ],
)
def test_papers_of_a_preset(preset: str, keys: list[str]) -> None:
    assert citation.papers(preset) == keys
    assert [entry.split("\n")[0] for entry in citation.of_papers(preset)] == [f"@misc{{{key}," for key in keys]


def test_an_artifact_is_cited_by_its_identity() -> None:
    text = citation.of_artifact(draft(name="a_b & {c}\n 50%"), citation.UNPUBLISHED)
    assert text.splitlines() == [
        "@misc{retort-0123456789ab,",
        r"  title = {a\_b \& \{c\} 50\%: 2 distilled images per class (sre2l)},",
        "  version = {0123456789ab},",
        "  note = {not published},",
        "}",
    ]
    assert (
        "  url = {https://huggingface.co/datasets/org/digits}," in citation.published(text, "org/digits").splitlines()
    )


def test_a_name_cannot_end_the_citation() -> None:
    text = citation.of_artifact(draft(name="}}```\\end"))
    inside = text.split("title = {", 1)[1].split("\n")[0].removesuffix("},")
    assert "`" not in text and inside.count(r"\}") == inside.count("}") - inside.count("{}")
