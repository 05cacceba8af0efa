// The tasks of a job as a table in which each attempt is a bar along the time.

import { html } from "./preact.js";
import { duration } from "./api.js";
import { Status } from "./parts.js";

const TICKS = 4;
const NICE = [1, 2, 5, 10, 15, 20, 30, 60, 120, 300, 600, 900, 1200, 1800, 3600, 7200, 14400, 21600, 43200, 86400];

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

// From when to when the bars go, in milliseconds.
export function span(job, tasks, now) {
  const starts = tasks.flatMap((task) => task.attempts.map((attempt) => at(attempt.started_at)));
  const ends = tasks.flatMap((task) => task.attempts.map((_, index) => endOf(job, task, index, now)));
  if (!starts.length) return null;
  const start = Math.min(...starts, ...(job.attempt <= 1 && job.started_at ? [at(job.started_at)] : []));
  return { start, end: Math.max(...ends, start + 1) };
}

function ticks({ start, end }) {
  const seconds = (end - start) / 1000;
  const step = NICE.find((size) => seconds / size <= TICKS) ?? Math.ceil(seconds / TICKS / 86400) * 86400;
  if (seconds < 1) return [];
  return Array.from({ length: Math.floor(seconds / step) }, (_, index) => (index + 1) * step);
}

const Bars = ({ job, task, range, now }) =>
  task.attempts.map((attempt, index) => {
    const from = at(attempt.started_at);
    const to = Math.max(from, endOf(job, task, index, now));
    const share = 100 / (range.end - range.start);
    const words = `attempt ${attempt.number}: ${attempt.status}, ${duration((to - from) / 1000)}`;
    return html`<span key=${attempt.number} class="run ${attempt.status}" title=${words}
      style=${{ left: `${(from - range.start) * share}%`, width: `${(to - from) * share}%` }}></span>`;
  });

function last(job, task, now) {
  const index = task.attempts.length - 1;
  return index < 0 ? null : (endOf(job, task, index, now) - at(task.attempts[index].started_at)) / 1000;
}

export function Timeline({ job, tasks, selected, onSelect, now }) {
  const range = span(job, tasks, now);
  const marks = range ? ticks(range) : [];
  const place = (seconds) => ({ left: `${(100000 * seconds) / (range.end - range.start)}%` });
  return html`<table class="timeline">
    <caption class="hidden">Tasks in the order of the list, with what they have run along the time</caption>
    <thead><tr>
      <th scope="col">Task</th><th scope="col">Status</th>
      <th scope="col" class="track"><span class="hidden">Timeline</span>${marks.map((seconds) => html`<span class="mark" style=${place(seconds)}>${duration(seconds).replace(".0", "")}</span>`)}</th>
      <th scope="col" class="figure">Duration</th><th scope="col" class="figure wide">Attempts</th><th scope="col" class="figure wide">Exit code</th>
    </tr></thead>
    <tbody>${tasks.map(
      (task) => html`<tr key=${task.id} class=${selected === task.id ? "selected" : ""} onClick=${() => onSelect(task.id)}>
        <th scope="row"><button class="plain" aria-pressed=${selected === task.id} onClick=${(event) => (event.stopPropagation(), onSelect(task.id))}>${task.id}</button></th>
        <td><${Status} value=${task.status} reason=${task.reason} /></td>
        <td class="track">${marks.map((seconds) => html`<span class="grid" style=${place(seconds)}></span>`)}${range ? html`<${Bars} job=${job} task=${task} range=${range} now=${now} />` : null}</td>
        <td class="figure">${duration(last(job, task, now))}</td>
        <td class="figure wide">${task.attempts.length || ""}</td>
        <td class="figure wide">${task.exit_code ?? ""}</td>
      </tr>`,
    )}</tbody>
  </table>`;
}
