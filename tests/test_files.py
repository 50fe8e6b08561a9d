"""A file is complete or absent."""

import pytest

from topicell.files import whole


def test_a_file_appears_when_it_is_complete(tmp_path):
    path = tmp_path / "table.csv"
    with whole(path) as unfinished:
        unfinished.write_text("new")
        assert not path.exists()
    assert [found.name for found in tmp_path.iterdir()] == ["table.csv"]
    assert path.read_text() == "new"


@pytest.mark.parametrize("error", [OSError("full"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_the_old_file(error, tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("old")

    def fail():
        with whole(path) as unfinished:
            unfinished.write_text("half")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert [found.name for found in tmp_path.iterdir()] == ["table.csv"]
    assert path.read_text() == "old"


def test_an_error_at_the_end_does_not_replace_the_first(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError), whole(tmp_path / "file" / "x") as unfinished:
        unfinished.write_text("")


def test_a_name_may_have_the_greatest_length(tmp_path):
    path = tmp_path / ("é" * 125 + ".csv")
    with whole(path) as unfinished:
        unfinished.write_text("new")
    assert path.read_text() == "new"
