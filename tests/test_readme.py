"""README.md: its examples run, and what it points to is there."""

import re
from pathlib import Path

import index_of_names
import pytest

import dropoutlib

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```python\n(.*?)^```", TEXT, flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_examples_run_on_their_own(example, capsys):
    exec(compile(example, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    if "accuracy(" in example:
        assert 0.85 < float(printed) <= 1


def test_there_is_an_example_that_trains_on_real_data():
    assert any("digits(" in example and "step()" in example for example in EXAMPLES)


def test_the_two_commands_can_be_found():
    for marker in ("book command", "test command"):
        assert re.search(rf"^<!-- {marker} -->\n```bash\n.+\n```$", TEXT, flags=re.MULTILINE), marker


def test_its_table_is_that_of_the_methods():
    assert index_of_names.with_methods(TEXT) == TEXT, "python book/_tools/index_of_names.py renders it"
    assert all(f"`{layer}`" in TEXT for row in dropoutlib.catalogue().values() for layer in row.layers)


def test_every_file_it_names_is_there():
    named = re.findall(r"\]\(([^):]+)\)", TEXT) + re.findall(r"`((?:book|dropoutlib|tests)/[\w/]+\.\w+)`", TEXT)
    named += re.findall(r"^(?:book|dropoutlib|tests)/\S+", TEXT, flags=re.MULTILINE)
    assert len(named) > 5
    assert not [name for name in named if not (ROOT / name).exists()]
