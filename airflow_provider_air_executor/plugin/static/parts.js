// Parts that several pages are made of.

import { html, useRef } from "./preact.js";
import { age, followInAirflow, pageAddress, query, time } from "./api.js";
import { OUTCOMES, Sign, outcomeOf, wordOf, wordsOf } from "./outcomes.js";
import { Pager } from "./pager.js";

// Of failures without a word of their own the reason is said too, but that of a plain exit code.
export function Status({ value, reason }) {
  const outcome = outcomeOf(value, reason);
  const isSaid = outcome !== value || !reason || reason === "exit";
  return html`<span class="status ${outcome}"><${Sign} outcome=${outcome} />${wordOf(outcome)}${isSaid ? null : html`<span class="quiet"> ${reason}</span>`}</span>`;
}

// How many tasks have ended in which way, as one bar; `counts` by outcome, or by status.
export function Progress({ counts }) {
  const of = (outcome) => counts[outcome] ?? 0;
  const total = OUTCOMES.reduce((sum, outcome) => sum + of(outcome), 0);
  if (!total) return html`<span class="quiet">no list of tasks</span>`;
  const done = of("completed") + of("skipped");
  const { completed, pending, ...others } = counts;
  const words = [`${done} of ${total} tasks done`, wordsOf(others)].filter(Boolean).join(", ");
  return html`<span class="progress" role="progressbar" aria-valuemin="0" aria-valuemax=${total}
      aria-valuenow=${done} aria-valuetext=${words} aria-label="Progress" title=${words}>
      <span class="bar" aria-hidden="true">${OUTCOMES.filter((outcome) => outcome !== "pending").map(
        (outcome) => html`<span class=${outcome} style=${{ width: `${(100 * of(outcome)) / total}%` }}></span>`,
      )}</span>
      <span class="number">${done}/${total}</span>
    </span>`;
}

export function Owner({ owner }) {
  if (!owner) return null;
  const mapped = owner.map_index >= 0 ? ` [${owner.map_index}]` : "";
  return html`<span class="owner">
    ${owner.task_url ? html`<a href=${owner.task_url} onClick=${followInAirflow}>${owner.task_id}${mapped}</a> of ` : null}
    <a href=${owner.run_url} onClick=${followInAirflow} title="run ${owner.run_id}">${owner.dag_id}</a>
    ${owner.callback ? html`<span class="quiet"> (callback: ${owner.callback})</span>` : null}
  </span>`;
}

// Each leads to the jobs that have it; `onLabel` shows them on the same page.
export const Labels = ({ labels, connId = query.get("conn_id"), onLabel }) =>
  Object.entries(labels).map(([key, value]) => {
    const label = `${key}${value ? `=${value}` : ""}`;
    if (label.includes("***")) return html`<span class="label">${label}</span>`; // what is hidden cannot be asked for
    const follow = (event) => {
      if (!onLabel || event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
      event.preventDefault();
      onLabel(label);
    };
    return html`<a class="label" href=${pageAddress("/jobs", { conn_id: connId, label })} title="Jobs with this label" onClick=${follow}>${label}</a>`;
  });

export function Problem({ error }) {
  if (!error) return null;
  if (error.away) return html`<${Away} error=${error} />`;
  return html`<p class="problem" role="alert">${error.message}</p>`;
}

// The manager is on another machine that cannot be reached: for how long, and why. Whoever shows it asks again and again.
function Away({ error }) {
  const { since } = error.away;
  return html`<section class="away" role="alert" aria-label="The manager is away">
    <p><strong>${error.message[0].toUpperCase()}${error.message.slice(1)}${/[.!?]$/.test(error.message) ? "" : "."}</strong></p>
    <p class="quiet">${since ? html`It was reached last ${age(since)} ago (<time datetime=${since}>${time(since)}</time>).` : "It has not been reached yet."} What its jobs do meanwhile is not known here; this page goes on by itself when it is there again.</p>
  </section>`;
}

export { Pager };

const SIZES = ["bytes", "KiB", "MiB", "GiB", "TiB"];

// A number of bytes in words.
export function bytes(number) {
  let [value, unit] = [number, 0];
  while (value >= 1024 && unit < SIZES.length - 1) [value, unit] = [value / 1024, unit + 1];
  return `${unit && value < 10 ? value.toFixed(1) : Math.round(value)} ${SIZES[unit]}`;
}

// A button that asks before it does what cannot be undone.
export function Confirmed({ label, busyLabel, question, yes, no, isDanger, isBusy, size = "", onYes }) {
  const dialog = useRef(null);
  return html`<button type="button" class="${isDanger ? "danger" : ""} ${size}" disabled=${isBusy} onClick=${() => dialog.current.showModal()}>${isBusy ? busyLabel : label}</button>
    <dialog ref=${dialog} aria-label=${label}>
      <p>${question}</p>
      <div class="actions"><button type="button" class=${isDanger ? "danger" : ""} onClick=${() => (dialog.current.close(), onYes())}>${yes}</button><button type="button" onClick=${() => dialog.current.close()}>${no}</button></div>
    </dialog>`;
}

export const Facts = ({ facts }) =>
  html`<dl class="facts">${facts.map(([name, value]) => (value || value === 0 ? html`<div><dt>${name}</dt><dd>${value}</dd></div>` : null))}</dl>`;
