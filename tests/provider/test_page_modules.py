"""The modules of the pages that need no page: groups and places of a graph, the axis, lines and colours of a log."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterator
from importlib.resources import files
from typing import Any

import pytest
from playwright.sync_api import Page, Route, sync_playwright

from airflow_provider_air_executor import plugin
from airflow_provider_air_executor.jobs.models import Reason, TaskStatus
from airflow_provider_air_executor.jobs.outcomes import outcome_of

pytestmark = [pytest.mark.browser]
STATIC = files(plugin) / "static"
PLACE = "http://modules.test"
FRAME = '<!doctype html><main id="app" data-root="" data-page="none"></main>'

# Numbers that look random and are always the same.
RANDOM = """let seed = 1;
    const random = below => {
        seed = (seed * 1103515245 + 12345) % 2147483648;
        return Math.floor(below * seed / 2147483648);
    };"""

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    """A page of a browser that finds the modules as files."""
    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        executable = os.environ.get("CHROMIUM", "/usr/bin/chromium")
        browser = playwright.chromium.launch(executable_path=executable, args=flags)
        found = browser.new_page()

        def serve(route: Route) -> None:
            path = route.request.url.removeprefix(PLACE).lstrip("/")
            body = (STATIC / path).read_text() if path else FRAME
            route.fulfill(body=body, content_type="text/javascript" if path else "text/html")

        found.route(f"{PLACE}/**", serve)
        found.goto(f"{PLACE}/")
        yield found
        browser.close()


@pytest.fixture
def run(page: Page) -> Run:
    """Run the body of a function; ``load`` gives a module, and ``given`` what else is handed over."""

    def evaluate(code: str, **given: Any) -> Any:
        function = f"async given => {{ const load = name => import(`/${{name}}.js`); {code} }}"
        return page.evaluate(function, given)

    return evaluate


# -- how something stands ----------------------------------------------------------------------------------


def test_the_words_are_those_of_the_server(run: Run) -> None:
    pairs = [(status.value, reason) for status in TaskStatus for reason in [None, "skipped", *map(str, Reason)]]
    found = run(
        "const { outcomeOf } = await load('outcomes'); return given.pairs.map(pair => outcomeOf(...pair))", pairs=pairs
    )
    assert found == [outcome_of(TaskStatus(status), reason).value for status, reason in pairs]


def test_each_outcome_has_a_shape_of_its_own(run: Run) -> None:
    code = """const { OUTCOMES, signPaths } = await load('outcomes');
        const ours = (key, value) => key.startsWith('__') ? undefined : value;
        return OUTCOMES.map(outcome => JSON.stringify(signPaths(outcome), ours))"""
    shapes = run(code)
    assert len(set(shapes)) == len(shapes) == 9


# -- groups of a graph -------------------------------------------------------------------------------------

GRAPH = "const { unitsOf, opened, nameOf, linksOf, ranksOf, countsOf, MAX_UNITS } = await load('groups');"


def fan(count: int) -> dict[str, Any]:
    """One task, many that depend on it, and one that depends on these."""
    ids = ["start", *(f"shard-{number}" for number in range(count)), "end"]
    return {"ids": ids, "dependencies": [[], *([0] for _ in range(count)), list(range(1, count + 1))]}


def test_tasks_that_are_alike_are_one_group(run: Run) -> None:
    code = (
        GRAPH
        + "return unitsOf(given.ids, given.dependencies).map(unit => [nameOf(unit, given.ids), unit.tasks.length])"
    )
    assert run(code, **fan(498)) == [["start", 1], ["shard-0 … 497", 498], ["end", 1]]
    assert len(run(code, **fan(198))) == 200  # few enough


def test_the_chosen_task_is_in_sight_and_siblings_are_in_order(run: Run) -> None:
    code = (
        GRAPH
        + """const { shown, groups } = opened(unitsOf(given.ids, given.dependencies), new Set(), given.chosen);
        return [shown.map(unit => nameOf(unit, given.ids)), groups.length]"""
    )
    names, groups = run(code, **fan(498), chosen=250)
    assert groups == 2  # the group of all, and a part of it
    assert names[0] == "start"
    assert names[1:5] == [f"shard-{n} … {n + 49}" for n in range(0, 200, 50)]
    assert names[names.index("shard-249") - 49 : names.index("shard-249") + 1] == [
        f"shard-{n}" for n in range(200, 250)
    ]
    assert names[-1] == "end"


@pytest.mark.parametrize(
    ("ids", "dependencies", "expected"),
    [
        ([f"t{n}" for n in range(1000)], [[n - 1] if n % 100 else [] for n in range(1000)], 10),  # chains
        ([f"s{n % 10}-{n}" for n in range(3000)], [[n - 10] if n > 9 else [] for n in range(3000)], 10),
        ([f"t{n}" for n in range(3000)], [[n - 1] if n else [] for n in range(3000)], 60),  # one: parts of it
        ([f"t{n}" for n in range(150)], [[n - 1] if n else [] for n in range(150)], 150),
    ],
)
def test_chains_are_groups(run: Run, ids: list[str], dependencies: list[list[int]], expected: int) -> None:
    code = GRAPH + "return unitsOf(given.ids, given.dependencies).length"
    assert run(code, ids=ids, dependencies=dependencies) == expected


def test_any_graph_becomes_few_groups_without_a_cycle(run: Run) -> None:
    code = (
        GRAPH
        + RANDOM
        + """
        const wrong = [];
        for (let round = 0; round < 40; round += 1) {
            const count = 150 + random(round % 4 ? 600 : 3000);
            const name = n => `${'abcdef'[n % 6]}${'abcdefghijkl'[random(12)]}${n}`;
            const ids = Array.from({ length: count }, (_, n) => round % 3 ? `task-${n}` : name(n));
            const near = 1 + random(round % 2 ? 8 : count);
            const one = n => Math.max(0, n - 1 - random(Math.min(n, near)));
            const some = n => [...new Set(Array.from({ length: 1 + random(3) }, () => one(n)))];
            const dependencies = ids.map((_, n) => n && random(10) ? some(n) : []);
            const units = unitsOf(ids, dependencies);
            const open = new Set();
            for (let step = 0; step < 4; step += 1) {
                const { shown } = opened(units, open, random(count));
                const all = shown.flatMap(unit => unit.tasks).sort((a, b) => a - b);
                if (all.some((task, at) => task !== at) || all.length !== count) wrong.push(`${round}: not each once`);
                if (step === 0 && units.length > MAX_UNITS) wrong.push(`${round}: ${units.length} units`);
                const links = linksOf(shown, dependencies);
                const ranks = ranksOf(links);
                const isBack = (from, to) => ranks[to] <= ranks[from] && wrong.push(`${round}: a cycle`);
                links.after.forEach((set, from) => set.forEach(to => isBack(from, to)));
                const groups = shown.filter(unit => unit.members);
                if (groups.length) open.add(groups[random(groups.length)].key);
            }
        }
        return [...new Set(wrong)]"""
    )
    assert run(code) == []


# -- places of a graph -------------------------------------------------------------------------------------

LAYOUT = (
    GRAPH
    + """const { layOut } = await load('layout');
    const units = given.ids.map((_, task) => ({ key: `${task}`, first: task, tasks: [task], members: null }));
    const drawn = layOut(given.ids.map(() => [100, 34]), linksOf(units, given.dependencies));"""
)


def test_siblings_are_in_the_order_of_the_list(run: Run) -> None:
    boxes = run(LAYOUT + "return drawn.boxes", **fan(20))
    assert len({box["x"] for box in boxes}) == 3
    tops = [box["y"] for box in boxes[1:21]]
    assert tops == sorted(tops)
    assert boxes[0]["y"] == pytest.approx((tops[0] + tops[-1]) / 2)  # in the middle of what depends on it


def test_boxes_are_apart_and_lines_lead_to_the_right(run: Run) -> None:
    code = (
        RANDOM
        + """
        given = { ids: Array.from({ length: 200 }, (_, n) => `t${n}`) };
        const some = n => [...new Set([random(n), Math.max(0, n - 1 - random(9))])];
        given.dependencies = given.ids.map((_, n) => n > 5 ? some(n) : []);
        """
        + LAYOUT
        + "return [drawn.boxes, drawn.lines, drawn.width, drawn.height]"
    )
    boxes, lines, width, height = run(code)
    columns: dict[float, list[float]] = {}
    for box in boxes:
        assert 0 <= box["x"] <= width - box["width"]
        assert -0.01 <= box["y"] <= height - box["height"] + 0.01
        columns.setdefault(box["x"], []).append(box["y"])
    for tops in columns.values():
        tops.sort()
        assert all(lower - upper >= 34 for upper, lower in itertools.pairwise(tops))
    assert len(lines) > 200
    for line in lines:
        before, after = boxes[line["from"]], boxes[line["to"]]
        assert before["x"] + before["width"] < after["x"]
        assert line["x"] == pytest.approx(after["x"], abs=0.1)
        assert line["y"] == pytest.approx(after["y"] + 17, abs=0.1)


def test_lines_that_need_not_cross_do_not(run: Run) -> None:
    """Tasks that are listed in another order than those before them."""
    boxes = run(LAYOUT + "return drawn.boxes", ids=list("abcdef"), dependencies=[[], [], [], [2], [1], [0]])
    assert [boxes[n]["y"] for n in (5, 4, 3)] == [boxes[n]["y"] for n in (0, 1, 2)]


# -- the axis ----------------------------------------------------------------------------------------------


def test_an_axis_leaves_out_the_time_in_which_nothing_ran(run: Run) -> None:
    code = """const { axisOf, placeOf, breaksOf, ticksOf } = await load('axis');
        const axis = axisOf(given.busy);
        const places = given.times.map(time => placeOf(axis, time));
        return [breaksOf(axis).map(one => one.seconds), places, ticksOf(axis).map(tick => tick.seconds)]"""
    busy = [[0, 4000], [3000, 9000], [2_100_000, 2_109_000]]
    breaks, places, ticks = run(code, busy=busy, times=[0, 4500, 9000, 1_000_000, 2_100_000, 2_104_500, 2_109_000])
    assert breaks == [2091]
    assert places == sorted(places)
    assert [round(place, 2) for place in places] == [0, 24.25, 48.5, 51.5, 51.5, 75.75, 100]
    assert ticks == [5, 5]


def test_an_axis_without_long_gaps_has_all(run: Run) -> None:
    code = """const { axisOf, breaksOf } = await load('axis');
        const axis = axisOf(given.busy); return axis && breaksOf(axis)"""
    assert run(code, busy=[[0, 60_000], [70_000, 90_000]]) == []
    assert run(code, busy=[[0, 100], [4_000, 4_100]]) == []  # nobody waits for five seconds
    assert run(code, busy=[[5, 5]]) == []
    assert run(code, busy=[]) is None
    many = [[n * 1_000_000, n * 1_000_000 + 1000] for n in range(40)]
    assert len(run(code, busy=many)) == 8  # the longest


# -- durations ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("past", "seconds", "is_over", "word"),
    [
        ([10, 11, 12, 10, 11], 30, True, "slower than usual"),
        ([10, 11, 12, 10, 11], 30, False, "slower than usual"),
        ([10, 11, 12, 10, 11], 3, True, "faster than usual"),
        ([10, 11, 12, 10, 11], 3, False, ""),  # it is not over
        ([10, 11, 12, 10, 11], 11.5, True, ""),
        ([10, 10, 10, 10], 10.5, True, ""),  # less than a tenth more
        ([10, 11], 30, True, ""),  # too few to know
        ([5, 50, 20, 80, 10], 90, True, ""),  # it always differs
    ],
)
def test_slower_than_usual(run: Run, past: list[float], seconds: float, is_over: bool, word: str) -> None:
    code = """const { judge, usualOf } = await load('durations');
        return judge(given.seconds, usualOf(given.runs), given.is_over)"""
    runs = [{"state": "completed", "seconds": one} for one in past] + [{"state": "failed", "seconds": 1}]
    assert run(code, runs=runs, seconds=seconds, is_over=is_over) == word


def test_what_is_usual(run: Run) -> None:
    code = "const { usualOf } = await load('durations'); return usualOf(given.runs)"
    runs = [{"state": "completed", "seconds": one} for one in (4, 1, 3, 2, 5)] + [{"state": "failed", "seconds": 99}]
    assert run(code, runs=runs) == {"median": 3, "low": 2, "high": 4, "count": 5}
    assert run(code, runs=[]) is None


# -- the lines of a log ------------------------------------------------------------------------------------

COLOURS = "const { PLAIN, looksOf, plainOf, segmentsOf, shownOf, styleAfter } = await load('ansi');"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("plain", [["plain", "", {}]]),
        ("\x1b[31mred\x1b[0m not", [["red", "fg-red", {}], [" not", "", {}]]),
        ("\x1b[1;92mgo\x1b[22m on\x1b[m", [["go", "bold fg-bright-green", {}], [" on", "fg-bright-green", {}]]),
        (
            "\x1b[38;5;196mx\x1b[48;2;1;2;3my",
            [
                ["x", "", {"color": "rgb(255,0,0)"}],
                ["y", "", {"color": "rgb(255,0,0)", "backgroundColor": "rgb(1,2,3)"}],
            ],
        ),
        ("\x1b[38;5;3mx", [["x", "fg-yellow", {}]]),
        ("\x1b[38;5;999mx\x1b[38;2;1mx", [["x", "", {}], ["x", "", {}]]),
        ("\x1b[7mx", [["x", "fg-inverse bg-inverse", {}]]),
        ("\x1b[2K\x1b[1Gstep\x1b[0K", [["step", "", {}]]),
        ("10%\r20%\r30%\r", [["30%", "", {}]]),
        ("\x1b]8;;http://evil/\x07link\x1b]8;;\x07 \x07\x00\x7fend", [["link end", "", {}]]),
        ("\x1b[3", [["[3", "", {}]]),
        ("<b>\x1b[31m&amp;", [["<b>", "", {}], ["&amp;", "fg-red", {}]]),
        ("a\tb", [["a\tb", "", {}]]),
    ],
)
def test_colours(run: Run, line: str, expected: list[Any]) -> None:
    code = (
        COLOURS
        + """const shown = shownOf(given.line); const found = segmentsOf(shown, PLAIN).map(([text, style]) => {
            const { classes, style: looks } = looksOf(style); return [text, classes, looks]; });
        return [found, plainOf(shown)]"""
    )
    segments, plain = run(code, line=line)
    assert segments == expected
    assert plain == "".join(text for text, _, _ in expected)


def test_a_colour_lasts_over_lines(run: Run) -> None:
    code = """const { Lines } = await load('lines'); const lines = new Lines();
        lines.append('a\\u001b[31mb\\nc\\n', 0, 9); lines.append('d\\u001b[0m\\ne\\n', 9, 17);
        return lines.lines.map(line => [line.plain, line.style.fg])"""
    assert run(code) == [["ab", None], ["c", "red"], ["d", "red"], ["e", None]]


LINES = """const { Lines, rowsOf, lineAt, findIn, timeOf, PIECE, MAX_CHARACTERS } = await load('lines');
    const lines = new Lines();"""


def test_lines_come_in_pieces(run: Run) -> None:
    code = (
        LINES
        + """lines.append('one\\ntw', 0, 6); lines.append('o £', 6, 10); lines.append('\\nthree\\n', 10, 17);
        return lines.lines.map(line => [line.plain, line.offset, line.number])"""
    )
    assert run(code) == [["one", 0, 0], ["two £", 4, 1], ["three", 11, 2]]


def test_earlier_lines_come_before(run: Run) -> None:
    code = (
        LINES
        + """lines.append('three\\nfour', 8, 18); const added = lines.prepend('one\\ntwo\\n', 0);
        lines.append(' and more\\n', 18, 28);
        return [added, lines.begin, lines.end, lines.lines.map(line => [line.plain, line.offset, line.number])]"""
    )
    assert run(code) == [
        2,
        0,
        28,
        [["one", 0, -2], ["two", 4, -1], ["three", 8, 0], ["four and more", 14, 1]],
    ]


def test_a_log_that_is_truncated_begins_anew(run: Run) -> None:
    code = (
        LINES
        + """lines.append('old\\nhalf', 0, 8); lines.append('', 0, 0); lines.append('new\\n', 0, 4);
        return [lines.begin, lines.lines.map(line => [line.plain, line.note])]"""
    )
    note = "(The log has been truncated; it begins anew.)"
    assert run(code) == [None, [["old", False], ["half", False], [note, True], ["new", False]]]


def test_a_progress_bar_is_its_last_state(run: Run) -> None:
    code = (
        LINES
        + """lines.append('first\\n1%\\r2%\\r', 0, 12); lines.append('3%\\r', 12, 15); const now = lines.text();
        lines.append('done\\n', 15, 20); return [now, lines.text()]"""
    )
    assert run(code) == ["first\n3%", "first\ndone"]


def test_a_window_has_an_end(run: Run) -> None:
    code = (
        LINES
        + """const line = 'x'.repeat(999) + '\\n'; const piece = line.repeat(256);
        let at = 0;
        for (let n = 0; n < 60; n += 1) { lines.append(piece, at, at + piece.length); at += piece.length; }
        const grown = [lines.length <= MAX_CHARACTERS, lines.begin, lines.end === at, lines.lines[0].offset];
        lines.prepend(piece.repeat(20), lines.begin - 20 * piece.length);
        const last = lines.lines[lines.lines.length - 1];
        const before = [lines.length <= MAX_CHARACTERS, lines.dropped, last.offset + 1000 === lines.end];
        const count = lines.count; lines.append('next\\n', lines.end, lines.end + 5);
        return [grown, before, lines.count === count + 1]"""
    )
    grown, before, goes_on = run(code)
    assert grown[0]
    assert grown[1] == grown[3] > 0
    assert grown[2]
    assert before == [True, True, True]
    assert goes_on


def test_rows_of_long_lines(run: Run) -> None:
    code = (
        LINES
        + """lines.append(given.text, 0, given.text.length);
        const wrapped = rowsOf(lines.lines, 80); const cut = rowsOf(lines.lines, 0);
        return [[...wrapped], [...cut], [0, 1, 2, 12501, 12502].map(row => lineAt(wrapped, row)), PIECE]"""
    )
    wrapped, cut, found, piece = run(code, text=f"{'x' * 81}\n{'y' * 1_000_000}\n\nend\n")
    assert wrapped == [0, 2, 12502, 12503, 12504]
    assert cut == [0, 1, 1 + 1_000_000 / piece, 2 + 1_000_000 / piece, 3 + 1_000_000 / piece]
    assert found == [0, 0, 1, 1, 2]


def test_what_is_wide_takes_more_columns(run: Run) -> None:
    code = LINES + "lines.append('a\\tb\\n表表\\n', 0, 99); return lines.lines.map(line => line.width)"
    assert run(code) == [9, 4]


def test_search(run: Run) -> None:
    code = (
        LINES
        + """lines.append('Error one\\nfine\\nerror, ERROR \\u001b[31merr\\u001b[0mor\\n', 0, 99);
        return [findIn(lines.lines, 'eRRor', 0, 3), findIn(lines.lines, '<', 0, 3)]"""
    )
    assert run(code) == [[[0, 0], [2, 0], [2, 7], [2, 13]], []]


def test_when_a_line_came(run: Run) -> None:
    code = LINES + "return [0, 9, 10, 25, 30, null].map(offset => timeOf([[100, 10], [101, 20], [105, 30]], offset))"
    assert run(code) == [100, 100, 101, 105, None, None]


def test_a_number_of_bytes(run: Run) -> None:
    code = "const { bytes } = await load('parts'); return [0, 1023, 1024, 1536, 10485760, 3e9].map(bytes)"
    assert json.dumps(run(code)) == json.dumps(["0 bytes", "1023 bytes", "1.0 KiB", "1.5 KiB", "10 MiB", "2.8 GiB"])
