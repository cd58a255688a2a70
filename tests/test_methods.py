"""The table of methods, and what is rendered from it."""

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
        for name in row.layers:
            assert hasattr(dropoutlib, name), f"{name} is to be exported in dropoutlib/exports.py"
            documentation = " ".join(getattr(dropoutlib, name).__doc__.split())
            for answer in row.answers.values():
                assert answer.replace("`", "``") in documentation, (name, answer)
            assert "{four_answers}" not in documentation
            assert row.chapter.removesuffix(".ipynb") in documentation, f"{name} does not name its chapter"


def test_every_layer_that_draws_is_a_noisy_layer():
    for row in catalogue().values():
        for layer in row.facts:
            kind = getattr(dropoutlib, layer.name)
            assert (isinstance(kind, type) and issubclass(kind, dropoutlib.NoisyLayer)) is (layer.law != "none")


def test_the_box_and_the_table_show_every_answer():
    table = catalogue()
    whole = table._repr_markdown_()
    for row in table.values():
        box = row._repr_markdown_()
        for answer in row.answers.values():
            assert answer in box
            assert answer in whole
        for key in row.references:
            assert key in box
        assert f"/{row.chapter}" in whole
        assert f"/{row.api}" in box


def test_changing_the_table_does_not_change_the_library():
    catalogue().clear()
    assert catalogue()


def test_describe_leaves_an_object_without_docstring_alone():
    def undocumented(): ...

    assert describe("max_norm")(undocumented).__doc__ is None
