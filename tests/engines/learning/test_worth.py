"""Which packages are worth importing ahead."""

from __future__ import annotations

import random

from airflow_provider_air_executor.engines.local.learning.worth import Candidate, choose

MB = 1 << 20


def choice(*candidates: Candidate, cap: int = 512, held: tuple[str, ...] = ()) -> tuple[str, ...]:
    return choose({one.root: one for one in candidates}, cap * MB, held)


def test_the_best_value_for_the_memory_comes_first() -> None:
    small = Candidate("small", 10, 0.1, 10 * MB)
    large = Candidate("large", 10, 0.2, 100 * MB)
    rare = Candidate("rare", 1, 0.1, 10 * MB)
    assert choice(large, small, rare) == ("small", "large", "rare")
    assert choice(large, small, rare, cap=25) == ("small", "rare")
    assert choice(large, small, rare, cap=9) == ()


def test_what_takes_no_time_or_is_not_used_is_left_out() -> None:
    assert choice(Candidate("quick", 1000, 0.0049, MB), Candidate("unused", 0, 1.0, MB)) == ()


def test_each_comes_after_what_it_needs_and_the_memory_of_that_counts() -> None:
    numpy = Candidate("numpy", 1, 0.07, 20 * MB)
    six = Candidate("six", 1, 0.001, MB)
    pandas = Candidate("pandas", 10, 0.16, 30 * MB, ("numpy", "six"))
    assert choice(pandas, numpy, six) == ("numpy", "pandas")
    assert choice(pandas, numpy, six, cap=50) == ("numpy",)
    one, other = Candidate("one", 1, 0.1, MB, ("other",)), Candidate("other", 1, 0.1, MB, ("one", "unknown"))
    assert sorted(choice(one, other)) == ["one", "other"]  # they need each other


def test_a_close_decision_stays_as_it_is() -> None:
    one, other = Candidate("one", 10, 0.1, 10 * MB), Candidate("other", 11, 0.1, 10 * MB)
    assert choice(one, other, cap=10) == ("other",)
    assert choice(one, other, cap=10, held=("one",)) == ("one",)
    other = Candidate("other", 20, 0.1, 10 * MB)
    assert choice(one, other, cap=10, held=("one",)) == ("other",)


def test_the_same_candidates_give_the_same_choice() -> None:
    candidates = [Candidate(f"p{number}", 5, 0.1, 10 * MB) for number in range(20)]
    chosen = set()
    for seed in range(5):
        random.Random(seed).shuffle(candidates)
        chosen.add(choice(*candidates, cap=55))
    assert chosen == {("p0", "p1", "p10", "p11", "p12")}
