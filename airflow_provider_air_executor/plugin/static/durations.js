// How long the runs before this one took, as small bars, and whether this one is slower than usual.

import { html } from "./preact.js";
import { duration, jobPath, pageAddress, time } from "./api.js";
import { outcomeOf, wordOf } from "./outcomes.js";

const WIDTH = 9; // of a bar and the space beside it
const HEIGHT = 44;
const MIN_RUNS = 4; // before anything is called usual
const LEAST = 1.1; // so many times the median: what is less is not worth a word

const quantile = (sorted, share) => {
  const at = (sorted.length - 1) * share;
  const below = Math.floor(at);
  return sorted[below] + (at - below) * ((sorted[below + 1] ?? sorted[below]) - sorted[below]);
};

// Of the runs that have completed: the median, and between which two the middle half lies.
export function usualOf(runs) {
  const sorted = runs.filter((run) => run.state === "completed").map((run) => run.seconds).sort((a, b) => a - b);
  if (!sorted.length) return null;
  return { median: quantile(sorted, 0.5), low: quantile(sorted, 0.25), high: quantile(sorted, 0.75), count: sorted.length };
}

// "slower than usual", "faster than usual", or nothing; while it runs only the first.
export function judge(seconds, usual, isOver) {
  if (!usual || usual.count < MIN_RUNS || seconds === null) return "";
  const spread = 1.5 * (usual.high - usual.low);
  if (seconds > usual.high + spread && seconds > LEAST * usual.median) return "slower than usual";
  if (isOver && seconds < usual.low - spread && LEAST * seconds < usual.median) return "faster than usual";
  return "";
}

// `runs`: those before, the newest first; `seconds`: of this one so far.
export function Durations({ job, runs, seconds, isOver, connId }) {
  if (!runs.length) return null;
  const usual = usualOf(runs);
  const word = judge(seconds, usual, isOver);
  const shown = [...runs].reverse();
  const most = Math.max(seconds ?? 0, usual?.high ?? 0, ...shown.map((run) => run.seconds), 0.001);
  const height = (value) => Math.max(1, (value / most) * (HEIGHT - 2));
  const bar = (value, at) => ({ x: at * WIDTH, y: HEIGHT - height(value), width: WIDTH - 3, height: height(value) });
  const wide = WIDTH * (shown.length + 1);
  return html`<figure class="durations">
    <svg role="img" aria-label="Durations of the runs before this one" viewBox="0 0 ${wide} ${HEIGHT}" width=${wide} height=${HEIGHT}>
      ${usual ? html`<rect class="spread" x="0" width=${wide} y=${HEIGHT - height(usual.high)} height=${Math.max(1, height(usual.high) - height(usual.low))} />` : null}
      ${shown.map((run, at) => html`<a key=${run.name} href=${run.is_there ? pageAddress(jobPath(run.name), { conn_id: connId }) : undefined}>
        <rect class="past ${outcomeOf(run.state, run.reason)}" ...${bar(run.seconds, at)}><title>${`${run.name}: ${duration(run.seconds)}, ${wordOf(outcomeOf(run.state, run.reason))}, ${time(run.started_at)}`}</title></rect></a>`)}
      ${seconds === null ? null : html`<rect class="present ${outcomeOf(job.state, job.reason)}" ...${bar(seconds, shown.length)}><title>${`this one: ${duration(seconds)}`}</title></rect>`}
      ${usual ? html`<line class="median" x1="0" x2=${wide} y1=${HEIGHT - height(usual.median)} y2=${HEIGHT - height(usual.median)} />` : null}
    </svg>
    <figcaption>${usual ? html`Usually ${duration(usual.median)}${usual.count > 1 ? html` <span class="quiet">(${duration(usual.low)} to ${duration(usual.high)}, ${usual.count} runs)</span>` : null}` : html`<span class="quiet">None of ${runs.length} runs before has completed</span>`}
      ${word ? html` <strong class="verdict">${word}</strong>` : null}</figcaption>
  </figure>`;
}
