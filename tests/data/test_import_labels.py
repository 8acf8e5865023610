"""How labels are named: volumes, values, and tables of values."""

from __future__ import annotations

import pytest

from common.data.own.labels import Named, by_table, named
from common.errors import UserError


def test_values_and_unknown_stand_behind_a_name_beside_its_place():
    assert named("a.tif") == Named("a.tif")
    assert named("a.tif#value=2") == Named("a.tif", (2,))
    assert named("a.tif#unknown=0,9&translation=0,0,80&value=1,5") == Named(
        "a.tif#translation=0,0,80", (1, 5), (0, 9)
    )


TABLE = {
    "mito": Named("all.tif", (1, 4), (255,), (2, 0)),
    "er": Named("all.tif", (2,), (255,), (1, 4, 0)),
}


def test_a_table_says_the_classes_of_values():
    text = "1=mito,4=mito,2=er,0=background,255=unknown"
    assert by_table("all.tif", text) == TABLE


@pytest.mark.parametrize("heading", ["", "value,class\n", "\ufeffid,name\n"])
def test_a_table_may_be_a_file(tmp_path, heading):
    file = tmp_path / "table.csv"
    lines = "1,mito\n4, mito\n\n2,er\n0,background\n255,unknown\n"
    file.write_text(heading + lines, encoding="utf-8")
    assert by_table("all.tif", str(file)) == TABLE


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1=mito,1=er", "'1,er'; write each value once"),
        ("a=mito", "'a,mito'; write each value once"),
        ("1=", "'1,'; write each value once"),
        ("0=background", "no class; write 1=mito,2=er"),
        ("1=mito,0=Backgroud", "'Backgroud'; write background, or a class of another name"),
        ("1=mito,9=unkown", "'unkown'; write unknown, or a class of another name"),
    ],
)
def test_a_wrong_table_is_one_sentence(text, words):
    with pytest.raises(UserError, match=words):
        by_table("all.tif", text)


def test_a_file_that_is_no_table_is_one_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"--values none.csv: no such file"):
        by_table("all.tif", "none.csv")
    file = tmp_path / "one.csv"
    file.write_text("1\n2\n")
    with pytest.raises(UserError, match=r"one.csv: '1'; write two columns"):
        by_table("all.tif", str(file))


def test_a_value_that_is_no_number_is_one_sentence():
    with pytest.raises(UserError, match="value 'mito'; write the number of the class"):
        named("all.tif#value=mito")
