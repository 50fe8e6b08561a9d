"""Files are whole or not there."""

import pytest

from topicell.files import whole


def test_a_file_appears_when_it_is_written(tmp_path):
    path = tmp_path / "table.csv"
    with whole(path) as unfinished:
        unfinished.write_text("new")
        assert not path.exists()
    assert [found.name for found in tmp_path.iterdir()] == ["table.csv"]
    assert path.read_text() == "new"


@pytest.mark.parametrize("error", [OSError("full"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_what_was_there(error, tmp_path):
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


def test_the_first_error_is_the_one_that_is_raised(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError), whole(tmp_path / "file" / "x") as unfinished:
        unfinished.write_text("")


def test_a_name_may_be_as_long_as_names_may_be(tmp_path):
    path = tmp_path / ("é" * 125 + ".csv")
    with whole(path) as unfinished:
        unfinished.write_text("new")
    assert path.read_text() == "new"
