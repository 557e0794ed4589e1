"""The TOML file of people: what it says, and one clear sentence for everything else."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamfix.errors import InputError, StreamfixError, UsageError
from streamfix.faces.people import read_people

ANNA = '[[person]]\nname = "Anna"\nphoto = "anna.jpg"\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("anna.jpg", "bert.jpg", "bert2.jpg"):
        cv2.imwrite(str(tmp_path / name), np.zeros((8, 8, 3), np.uint8))
    return tmp_path


def read(folder: Path, text: str):
    path = folder / "people.toml"
    path.write_text(text)
    return read_people(path)


def test_people_with_different_settings(folder: Path) -> None:
    file = read(
        folder,
        f"""
        others = "restore"
        others_strength = 0.25
        [[person]]
        name = "Anna"
        photo = "anna.jpg"
        strength = 0.6
        [[person]]
        name = "Bert"
        photos = ["bert.jpg", "{folder}/bert2.jpg"]
        restore = false
        strength = 0.5
        """,
    )
    assert file.others == 0.25
    anna, bert = file.entries
    assert (anna.name, anna.strength, anna.photos) == ("Anna", 0.6, (folder / "anna.jpg",))
    assert (bert.name, bert.strength, bert.photos) == ("Bert", 0.0, (folder / "bert.jpg", folder / "bert2.jpg"))


def test_what_is_not_said(folder: Path) -> None:
    assert read(folder, ANNA).others == 0.0
    assert read(folder, ANNA).entries[0].strength == 1.0
    assert read(folder, 'others = "restore"\n' + ANNA).others == 1.0
    assert read(folder, "\ufeff" + ANNA).entries[0].name == "Anna"  # as Windows' editors write


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names nobody"),
        ('others = "restore"', "names nobody"),
        ('name = "x', "is no TOML"),
        ('other = "leave"\n' + ANNA, "no key 'other'; did you mean others"),
        ('Persons = "leave"\n' + ANNA, "no key 'Persons'; did you mean person"),
        (ANNA + "strenght = 1.0", "number 1: there is no key 'strenght'; did you mean strength"),
        (ANNA + ANNA.replace("Anna", "Bert").replace("photo ", "foto "), "number 2: .*'foto'; did you mean photo"),
        ('others = "keep"\n' + ANNA, 'others must be "restore" or "leave", not \'keep\''),
        ("others = true\n" + ANNA, 'others must be "restore" or "leave", not true'),
        ("others_strength = 0.5\n" + ANNA, "others_strength is of use with"),
        ('others = "restore"\nothers_strength = 2\n' + ANNA, "others_strength must be a number from 0"),
        ('[person]\nname = "Anna"', r"begun with \[\[person\]\]"),
        ('person = ["Anna"]', r"begun with \[\[person\]\]"),
        ('[[person]]\nphoto = "anna.jpg"', 'number 1 has no name; add name = "..."'),
        (ANNA.replace('"Anna"', '" "'), "name must be a text"),
        (ANNA.replace('"Anna"', "7"), "name must be a text that is not empty, not 7"),
        (ANNA + 'strength = "0.5"', "Anna: strength must be a number from 0 .* not '0.5'"),
        (ANNA + "strength = true", "strength must be a number .* not true"),
        (ANNA + "strength = nan", "strength must be a number .* not nan"),
        (ANNA + "strength = -0.1", "strength must be a number"),
        (ANNA + "restore = 1", "restore must be true or false, not 1"),
        ('[[person]]\nname = "Anna"', "needs either photo"),
        (ANNA + 'photos = ["bert.jpg"]', "needs either photo"),
        ('[[person]]\nname = "Anna"\nphotos = []', "photos must be a list of names"),
        ('[[person]]\nname = "Anna"\nphotos = "anna.jpg"', "photos must be a list of names"),
        ('[[person]]\nname = "Anna"\nphoto = ["anna.jpg"]', "photo must be the name of a file"),
        (ANNA + ANNA, "two people called Anna"),
        (ANNA + 'others = "restore"', r"others is said of the whole file; write it above the first \[\[person\]\]"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(folder: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        read(folder, text)
    assert "people.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_not_there(folder: Path) -> None:
    with pytest.raises(InputError, match=r"people\.toml: Anna: there is no photo .*anne\.jpg"):
        read(folder, ANNA.replace("anna.jpg", "anne.jpg"))
    with pytest.raises(InputError, match="cannot be read"):
        read_people(folder / "nobody.toml")
    with pytest.raises(InputError, match="no photo"):
        read(folder, ANNA.replace("anna.jpg", "~nosuchuser/a.jpg"))
    with pytest.raises(InputError, match="no photo"):
        read(folder, ANNA.replace("anna.jpg", "a\\u0000.jpg"))
    (folder / "people.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="is no TOML"):
        read_people(folder / "people.toml")


VALUES = [
    "true",
    "0",
    "1.5",
    "-1",
    "nan",
    '""',
    '"restore"',
    '"anna.jpg"',
    "[]",
    '["anna.jpg"]',
    "{}",
    "1979-05-27",
    "[[]]",
]
KEYS = ["others", "others_strength", "person", "name", "photo", "photos", "strength", "restore", "x"]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    top=st.dictionaries(st.sampled_from(KEYS), st.sampled_from(VALUES), max_size=3),
    people=st.lists(st.dictionaries(st.sampled_from(KEYS), st.sampled_from(VALUES), max_size=5), max_size=2),
)
def test_whatever_is_written_is_taken_or_told(folder: Path, top: dict[str, str], people: list[dict[str, str]]) -> None:
    tables = [top, *people]
    text = "[[person]]\n".join("".join(f"{k} = {v}\n" for k, v in table.items()) for table in tables)
    try:
        file = read(folder, text)
    except StreamfixError as error:
        told = str(error)
        assert "\n" not in told
    else:
        assert all(0 <= e.strength <= 1 and e.photos for e in file.entries)
        assert 0 <= file.others <= 1
