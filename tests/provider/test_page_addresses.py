"""What the list of jobs is asked for, as the address of its page has it, and the numbers of its pages; no server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.resources import files
from typing import Any

import pytest

from airflow_provider_air_executor import plugin
from airflow_provider_air_executor.api.selection import Sort
from airflow_provider_air_executor.jobs.outcomes import JobOutcome

pytestmark = [pytest.mark.browser]
STATIC = files(plugin) / "static"
PLACE = "http://modules.test"
FRAME = '<!doctype html><main id="app" data-root="/airflow" data-page="none"></main>'

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """Run code in a browser that finds the modules of the pages as files; ``of(name)`` loads one."""
    from tests.acceptance.browsing import chromium

    def serve(route: Any) -> None:
        path = route.request.url.removeprefix(PLACE).lstrip("/")
        body = (STATIC / path).read_text() if path else FRAME
        route.fulfill(body=body, content_type="text/javascript" if path else "text/html")

    with chromium() as browser:
        page = browser.new_page()
        page.route(f"{PLACE}/**", serve)
        page.goto(f"{PLACE}/")
        page.evaluate("""localStorage.setItem("timezone", '"Europe/Berlin"')""")

        def evaluate(code: str, given: Any = None) -> Any:
            return page.evaluate(
                f"async given => {{ const of = name => import(`/${{name}}.js`); return {code}; }}", given
            )

        yield evaluate


@pytest.mark.parametrize(
    ("current", "count", "numbers"),
    [
        (1, 1, [1]),
        (1, 3, [1, 2, 3]),
        (1, 9, [1, 2, 3, None, 9]),
        (4, 9, [1, 2, 3, 4, 5, 6, None, 9]),
        (5, 9, [1, 2, 3, 4, 5, 6, 7, 8, 9]),
        (50, 200, [1, None, 48, 49, 50, 51, 52, None, 200]),
        (200, 200, [1, None, 198, 199, 200]),
        (7, 3, [1, 2, 3]),  # jobs have been removed meanwhile
    ],
)
def test_numbers_of_pages(run: Run, current: int, count: int, numbers: list[int | None]) -> None:
    assert run("(await of('pager')).pageNumbers(...given)", [current, count]) == numbers


ROUND = "(await of('query')).toAddress((await of('query')).fromAddress(given))"


@pytest.mark.parametrize(
    ("query", "address"),
    [
        ("", ""),
        ("?name=a%20b&offset=50", "?name=a+b&offset=50"),
        ("?offset=-3&sort=odd&order=up&outcome=odd&since=3y&created_after=noon", ""),
        ("?sort=name", "?sort=name&order=desc"),
        ("?sort=created&order=asc", "?sort=created&order=asc"),
        ("?conn_id=air_executor_default&label=a&label=b%3Dc", "?label=a&label=b%3Dc"),
        ("?state=waiting", "?outcome=waiting"),  # links of earlier versions
        ("?state=failed", "?outcome=failed&outcome=cancelled&outcome=timed_out&outcome=lost"),
        (
            "?dag_id=d&run_id=r%2F1&task_id=t&map_index=0&reason=exit",
            "?reason=exit&dag_id=d&run_id=r%2F1&task_id=t&map_index=0",
        ),
        ("?created_before=2026-11-01T12:00:00%2B02:00", "?created_before=2026-11-01T10%3A00%3A00.000Z"),
        ("?since=7d", "?since=7d"),
    ],
)
def test_what_an_address_asks_for(run: Run, query: str, address: str) -> None:
    assert run(ROUND, query) == f"/airflow/air-executor/jobs{address}"
    assert run(ROUND, address) == f"/airflow/air-executor/jobs{address}"


@pytest.mark.parametrize(
    ("field", "time"),
    [
        ("2026-11-01T12:30", "2026-11-01T11:30:00.000Z"),
        ("2026-07-01T00:00", "2026-06-30T22:00:00.000Z"),
        ("2026-03-29T03:00", "2026-03-29T01:00:00.000Z"),  # an hour is left out before it
        ("2026-10-25T04:00", "2026-10-25T03:00:00.000Z"),  # an hour comes twice before it
        ("", ""),
    ],
)
def test_times_are_those_of_the_zone_that_airflow_shows(run: Run, field: str, time: str) -> None:
    assert run("(await of('query')).fromField(given)", field) == time
    assert run("(await of('query')).toField(given)", time) == field


def test_the_page_knows_the_words_of_the_api(run: Run) -> None:
    assert run("(await of('query')).OUTCOMES_OF_JOBS") == [outcome.value for outcome in JobOutcome]
    assert set(run("(await of('query')).SORTS")) == {sort.value for sort in Sort}
