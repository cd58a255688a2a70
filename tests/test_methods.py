"""The table of methods, and what is rendered from it."""

import json
import re
from dataclasses import fields
from pathlib import Path

import pytest

import dropoutlib
from dropoutlib import catalogue
from dropoutlib.methods import QUESTIONS, describe


def test_rows_are_found_by_their_name():
    table = catalogue()
    assert set(table) >= {"standard_dropout", "max_norm", "gaussian_dropout"}
    for name, row in table.items():
        assert row.name == name
        assert all(row.answers[question] for question in QUESTIONS)


def test_every_layer_is_exported_and_its_docstring_gives_the_four_answers():
    for row in catalogue().values():
        for layer in row.facts:
            name = layer.name
            assert hasattr(dropoutlib, name), f"{name} is to be exported in dropoutlib/exports.py"
            documentation = " ".join(getattr(dropoutlib, name).__doc__.split())
            assert set(layer.answers) <= set(QUESTIONS)
            for answer in {**row.answers, **layer.answers}.values():
                assert answer.replace("`", "``") in documentation, (name, answer)
            assert "{four_answers}" not in documentation
            assert row.chapter.removesuffix(".ipynb") in documentation, f"{name} does not name its chapter"


def test_every_layer_that_draws_is_a_noisy_layer():
    for row in catalogue().values():
        for layer in row.facts:
            kind = getattr(dropoutlib, layer.name)
            assert (isinstance(kind, type) and issubclass(kind, dropoutlib.NoisyLayer)) is (layer.law != "none")


def test_the_index_groups_every_method_once_by_what_is_dropped():
    groups = catalogue().groups
    names = [row.name for rows in groups.values() for row in rows]
    assert sorted(names) == sorted(catalogue())
    of_weights = [row.name for row in groups["weights"]]
    assert of_weights[:3] == ["dropconnect", "targeted_dropout", "weight_drop"], "masks first"
    assert "| *weights* | [DropConnect]" in catalogue()._repr_markdown_()


def test_the_box_shows_every_answer_and_the_table_every_method():
    table = catalogue()
    whole = table._repr_markdown_()
    for row in table.values():
        box = row._repr_markdown_()
        for answer in row.answers.values():
            assert answer in box
        for key in row.references:
            assert key in box
        assert f"[{row.title}](/{row.chapter}) | {row.summary}" in whole
        assert f"/{row.api}" in box


@pytest.mark.parametrize("name", catalogue())
def test_no_field_is_empty_and_the_answer_box_shows_what_it_answers(name):
    row = catalogue()[name]
    assert all(getattr(row, field.name) for field in fields(row))
    for text in (row.summary, row.use, row.avoid, row.first, row.evidence):
        assert text.endswith(".")
        assert "|" not in text, "it would cut the cell of a Markdown table"
        assert text in row.in_short._repr_markdown_()
    assert row.summary in repr(row.in_short)
    for text in (row.use, row.first, f"/{row.chapter}"):
        assert text in catalogue().in_short._repr_markdown_()
    assert "](" not in repr(row.in_short), "a terminal follows no links"
    assert "{cite" not in repr(row.in_short)


@pytest.mark.parametrize("name", catalogue())
def test_evidence_is_graded_and_leads_to_a_chapter_or_a_paper(name):
    evidence = catalogue()[name].evidence
    _, *graded = re.split(r"\*([^*]*)\*: ", evidence)
    claims = dict(zip(graded[::2], graded[1::2], strict=True))
    assert list(claims) == ["Proved", "Measured here", "Literature"]
    assert _links(claims["Proved"])
    assert _links(claims["Measured here"]) or claims["Measured here"].strip() == "nothing."
    assert "{cite:t}" in claims["Literature"]


ROOT = Path(__file__).parents[1]
IS_HERE = pytest.mark.skipif(not (ROOT / "book").is_dir(), reason="the book is not here")


@IS_HERE
@pytest.mark.parametrize("name", catalogue())
def test_links_and_papers_of_the_evidence_exist(name):
    evidence = catalogue()[name].evidence
    keys = set(re.findall(r"@\w+{([^,]+),", (ROOT / "book/references.bib").read_text(encoding="utf8")))
    assert set(re.findall(r"{cite:t}`([^`]*)`", evidence)) <= keys
    for page, _, section in (link.partition("#") for link in _links(evidence)):
        cells = json.loads((ROOT / page.lstrip("/")).read_text(encoding="utf8"))["cells"]
        headings = re.findall(r"^#+ (.*)$", "\n".join("".join(cell["source"]) for cell in cells
                                                      if cell["cell_type"] == "markdown"), re.MULTILINE)
        anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
        assert not section or section in anchors, f"{page} has no section {section!r}"


def _links(text):
    return re.findall(r"\]\(([^)]*)\)", text)


def test_changing_the_table_does_not_change_the_library():
    catalogue().clear()
    assert catalogue()


def test_describe_leaves_an_object_without_docstring_alone():
    def undocumented(): ...

    assert describe("max_norm")(undocumented).__doc__ is None


NO_MODULES = {"max_norm", "mc_dropout", "attention_dropout", "rate_schedule", "r_drop_loss", "graph_dropout"}


@pytest.mark.parametrize("name", catalogue())
def test_the_page_of_the_layers_has_an_example_in_a_model_that_runs(name):
    row = catalogue()[name]
    (example,) = re.findall(r"^```python\n(.*?)^```", (ROOT / row.api).read_text(encoding="utf-8"),
                            flags=re.DOTALL | re.MULTILINE)
    assert "model = " in example and any(f" {layer}" in example for layer in row.layers)
    found = {}
    exec(compile(example, row.api, "exec"), found)
    used = {type(module).__name__ for module in found["model"].modules()}
    assert used & set(row.layers) or name in NO_MODULES
