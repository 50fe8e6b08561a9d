"""Reading stored runs."""

import pytest
from faults import free_port

from topicell.config import TrackingConfig
from topicell.errors import InputError
from topicell.tracking.parents import Parent
from topicell.tracking.runs import RECORDS
from topicell.tracking.stored import fetch_run


def test_other_things_than_a_run_are_refused(store, tmp_path):
    with pytest.raises(InputError, match="neither a folder nor a run"):
        fetch_run("0" * 32, store, tmp_path, RECORDS)
    parent = Parent.start(store, "multirun", {"topicell.kind": "multirun"}, tmp_path / "grid")
    with pytest.raises(InputError, match="parent of a multirun"):
        fetch_run(parent.run_id, store, tmp_path, RECORDS)
    parent.finish("FINISHED")
    with pytest.raises(InputError, match=r"has no config\.yaml"):
        fetch_run(str(tmp_path), store, tmp_path, RECORDS)
    gone = TrackingConfig(uri=f"http://127.0.0.1:{free_port()}")
    with pytest.raises(InputError, match="cannot be read"):
        fetch_run("0" * 32, gone, tmp_path, RECORDS)
    # A grid whose server is gone can still end.
    Parent(gone, parent.run_id).finish("FINISHED")
