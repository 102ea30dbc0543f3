from lockd.engine.changes import Changes


def test_counts_are_told_when_they_have_changed() -> None:
    changes = Changes()
    assert changes.tell_counts((0, 0, 0, 0))
    assert not changes.tell_counts((0, 0, 0, 0))
    assert changes.tell_counts((1, 0, 0, 0))
    assert changes.counts == (1, 0, 0, 0)
