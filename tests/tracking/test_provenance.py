"""Tags that say which code made a run."""

from topicell.tracking.provenance import provenance


def test_provenance_names_version_and_commit():
    tags = provenance()
    assert tags["topicell.version"]
    if "topicell.git_commit" in tags:
        assert len(tags["topicell.git_commit"]) == 40
        assert tags["topicell.git_dirty"] in ("true", "false")
