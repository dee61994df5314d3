"""What several masters say is told as one."""

from revocation_service.store.reads import Answer, Found

ONE, OTHER = Found(b"1", 20.0), Found(b"2", None)


def test_the_earliest_clock_counts_and_a_silent_master_has_none() -> None:
    """What one of them holds alive stays so; who said nothing says nothing of the time."""
    answers = [Answer(10.0, {}, frozenset()), Answer(7.0, {}, frozenset()), Answer.silence(["c"])]
    assert Answer.together(answers, ["a", "b", "c"]) == Answer(7.0, {}, frozenset({"c"}))
    assert Answer.together([Answer.silence(["a"]), Answer.silence(["b"])], ["a", "b"]).now == 0
    assert Answer.together([], ["a"]).now == 0


def test_only_the_askers_own_keys_are_told() -> None:
    """A trip carries the keys of many; to copy them all for each would cost the square of their number."""
    answers = [Answer(5.0, {"a": ONE, "x": ONE}, frozenset({"y"})), Answer(5.0, {"b": OTHER}, frozenset({"c", "z"}))]
    assert Answer.together(answers, ["a", "b", "c"]) == Answer(5.0, {"a": ONE, "b": OTHER}, frozenset({"c"}))
