// The tasks of a job as a table in which each attempt is a bar along the time.

import { html, useMemo, useRef } from "./preact.js";
import { clock, duration, time } from "./api.js";
import { axisOf, breaksOf, placeOf, ticksOf } from "./axis.js";
import { outcomeOf, wordOf } from "./outcomes.js";
import { Status } from "./parts.js";
import { useLater } from "./slices.js";

const ROWS = 50; // that are drawn in one go

const at = (text) => new Date(text).getTime();

// When an attempt has ended, in milliseconds. Of one that was killed with its runner that is not recorded.
function endOf(job, task, index, now) {
  const attempt = task.attempts[index];
  if (attempt.ended_at) return at(attempt.ended_at);
  const next = task.attempts[index + 1];
  if (next) return at(next.started_at);
  if (task.status === "running") return now;
  return job.ended_at ? at(job.ended_at) : at(attempt.started_at);
}

const wordsOf = (attempt, task, isLast, seconds) => {
  const outcome = wordOf(outcomeOf(attempt.status, isLast ? task.reason : null));
  const code = attempt.exit_code === null || attempt.exit_code === undefined ? "" : `, exit code ${attempt.exit_code}`;
  return `attempt ${attempt.number}: ${outcome}${code}, ${duration(seconds)}, from ${time(attempt.started_at)}`;
};

const Bars = ({ job, task, axis, now }) =>
  task.attempts.map((attempt, index) => {
    const from = at(attempt.started_at);
    const to = Math.max(from, endOf(job, task, index, now));
    const [left, right] = [placeOf(axis, from), placeOf(axis, to)];
    const isLast = index === task.attempts.length - 1;
    return html`<span key=${attempt.number} class="run ${outcomeOf(attempt.status, isLast ? task.reason : null)}" title=${wordsOf(attempt, task, isLast, (to - from) / 1000)}
      style=${{ left: `${left}%`, width: `${right - left}%` }}></span>`;
  });

function last(job, task, now) {
  const index = task.attempts.length - 1;
  return index < 0 ? null : (endOf(job, task, index, now) - at(task.attempts[index].started_at)) / 1000;
}

// Some rows of the table, of which only the first ones are drawn at once.
function Rows({ tasks, isFirst, job, axis, lines, selected, now, select }) {
  const chosen = tasks.some((task) => task.id === selected) ? selected : null;
  const present = tasks.some((task) => task.status === "running") ? now : null;
  const value = useMemo(() => ({ tasks, job, axis, lines, chosen, present }), [tasks, job.ended_at, axis, chosen, present]);
  const shown = useLater(value, isFirst);
  return useMemo(() => shown && html`<tbody>${shown.tasks.map((task) => Row({ task, select, ...shown }))}</tbody>`, [shown]);
}

const Row = ({ task, job, axis, lines, chosen, present, select }) => html`<tr key=${task.id} class=${chosen === task.id ? "selected" : ""} onClick=${() => select.current(task.id)}>
  <th scope="row"><button type="button" class="plain" aria-pressed=${chosen === task.id} onClick=${(event) => (event.stopPropagation(), select.current(task.id))}>${task.id}</button></th>
  <td><${Status} value=${task.status} reason=${task.reason} /></td>
  <td class="track">${lines()}${axis ? html`<${Bars} job=${job} task=${task} axis=${axis} now=${present} />` : null}</td>
  <td class="figure">${duration(last(job, task, present))}</td>
  <td class="figure wide">${task.attempts.length || ""}</td>
  <td class="figure wide">${task.exit_code ?? ""}</td>
</tr>`;

function inChunks(tasks) {
  const chunks = [];
  for (let at = 0; at < Math.max(1, tasks.length); at += ROWS) chunks.push(tasks.slice(at, at + ROWS));
  return chunks;
}

// `busy`: when tasks of the whole job ran, whichever are shown, so that the axis stays when others are.
export function Timeline({ job, tasks, busy, selected, onSelect, now }) {
  const isGrowing = busy.some(([, to]) => !to);
  const axis = useMemo(() => axisOf(busy.map(([from, to]) => [at(from), to ? at(to) : now])), [busy, isGrowing && now]);
  const chunks = useMemo(() => inChunks(tasks), [tasks]);
  const select = useRef(onSelect);
  select.current = onSelect;
  const ticks = axis ? ticksOf(axis) : [];
  const breaks = axis ? breaksOf(axis) : [];
  const begins = axis ? axis.slice(1) : [];
  const lines = () => html`${ticks.map(({ left }) => html`<span class="grid" style=${{ left: `${left}%` }}></span>`)}${breaks.map(({ left, width }) => html`<span class="break" style=${{ left: `${left}%`, width: `${width}%` }}></span>`)}`;
  return html`<table class="timeline">
    <caption class="hidden">Tasks in the order of the list, with what they have run along the time</caption>
    <thead><tr>
      <th scope="col">Task</th><th scope="col">Status</th>
      <th scope="col" class="track"><span class="hidden">Timeline</span>
        ${ticks.map(({ seconds, left, after }) => (after ? null : html`<span class="mark" style=${{ left: `${left}%` }}>${duration(seconds).replace(".0", "")}</span>`))}
        ${begins.map((part) => html`<span class="mark later" style=${{ left: `${part.left}%` }} title=${time(part.start)}>${clock(part.start)}</span>`)}
        ${breaks.map(({ left, width, seconds }) => html`<span class="break" style=${{ left: `${left}%`, width: `${width}%` }} title="${duration(seconds)} in which nothing ran are left out"><span class="hidden">${duration(seconds)} left out</span></span>`)}
      </th>
      <th scope="col" class="figure">Duration</th><th scope="col" class="figure wide">Attempts</th><th scope="col" class="figure wide">Exit code</th>
    </tr></thead>
    ${chunks.map((chunk, index) => html`<${Rows} key=${index} tasks=${chunk} isFirst=${index === 0} job=${job} axis=${axis} lines=${lines} selected=${selected} now=${now} select=${select} />`)}
  </table>`;
}
