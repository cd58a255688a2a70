"""Words that are filled into docstrings."""

import inspect

from dropoutlib.documentation import WORDS, document


def scale(input, p, noise=None):
    """Scales.

    Args:
        input: a tensor.
        p: the probability of dropping, which is
            between 0 and 1.

    Returns:
        A tensor.
    """


def text(template, *of, like=None, **words):
    def documented(): ...

    documented.__doc__ = template
    return inspect.getdoc(document(*of, like=like, **words)(documented))


def test_entries_begin_lines_and_are_those_of_another_docstring():
    filled = text("Drops.\n\nArgs:\n    {input} {p} {more}\n\nReturns:\n    {Returns}", scale, more="It may change.")
    assert filled == ("Drops.\n\nArgs:\n    input: a tensor.\n"
                      "    p: the probability of dropping, which is between 0 and 1. It may change.\n\n"
                      "Returns:\n    A tensor.")
    assert text("The noise is {the_p}", scale) == "The noise is the probability of dropping, which is between 0 and 1."


def test_given_words_count_before_those_of_another_docstring_and_those_before_the_shared_ones():
    assert text("A layer.\n\nArgs:\n    {device}\n\n") == f"A layer.\n\nArgs:\n    {WORDS['device']}"
    assert text("{input}", scale) == "input: a tensor."
    assert text("{input}", scale, input="input: {words} filled in as well.", words="words are") == (
        "input: words are filled in as well.")


def test_formulas_and_unknown_words_stay():
    assert text(r"It is :math:`\frac{p}{1 - p}`, {unheard}.", scale) == r"It is :math:`\frac{p}{1 - p}`, {unheard}."


def test_long_lines_are_broken_and_go_on_in_the_next_one():
    filled = text("A layer.\n\nArgs:\n    {p} " + "word " * 15 + "\n        and the rest.\n    q: another.", scale)
    *lines, rest, last = filled.splitlines()
    assert all(len(line) <= 116 for line in lines)
    assert rest.startswith("        word") and rest.endswith("word and the rest.")
    assert last == "    q: another."
    literal = "``(N, 1, H, W)``"
    assert text(f"{'x' * 108} {{literal}}", literal=literal).splitlines() == ["x" * 108, literal]


def test_a_class_fills_its_methods_and_a_private_one_these_alone():
    class Layer:
        """With {p}"""

        def extra_repr(self):
            """{shown}"""

    class _Template(Layer):
        """With {p}"""

        def extra_repr(self):
            """{shown}"""

    for kind in (Layer, _Template):
        document(p="a word")(kind)
        assert kind.extra_repr.__doc__ == WORDS["shown"]
    assert Layer.__doc__ == "With a word"
    assert _Template.__doc__ == "With {p}"
    assert text(None, like=_Template, p="ranks") == "With ranks"


def test_no_shared_word_is_left_over(request):
    sources = "".join(path.read_text() for path in (request.config.rootpath / "dropoutlib").rglob("*.py"))
    assert not [word for word in WORDS if f"{{{word}}}" not in sources]
