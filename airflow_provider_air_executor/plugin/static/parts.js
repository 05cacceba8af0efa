// Parts that several pages are made of.

import { html } from "./preact.js";
import { followInAirflow } from "./api.js";

export const Status = ({ value, reason }) =>
  html`<span class="status ${value}"><span class="dot" aria-hidden="true"></span>${value}${reason && reason !== "exit" ? html`<span class="quiet"> ${reason}</span>` : null}</span>`;

// How many tasks have ended in which way, as one bar.
export function Progress({ counts }) {
  const of = (status) => counts[status] ?? 0;
  const total = of("completed") + of("failed") + of("running") + of("pending");
  if (!total) return html`<span class="quiet">no list of tasks</span>`;
  const words = [`${of("completed")} of ${total} tasks done`];
  for (const status of ["failed", "running"]) if (of(status)) words.push(`${of(status)} ${status}`);
  return html`<span class="progress" role="progressbar" aria-valuemin="0" aria-valuemax=${total}
      aria-valuenow=${of("completed")} aria-valuetext=${words.join(", ")} aria-label="Progress" title=${words.join(", ")}>
      <span class="bar" aria-hidden="true">${["completed", "failed", "running"].map(
        (status) => html`<span class=${status} style=${{ width: `${(100 * of(status)) / total}%` }}></span>`,
      )}</span>
      <span class="number">${of("completed")}/${total}</span>
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

export const Labels = ({ labels }) =>
  Object.entries(labels).map(([key, value]) => html`<span class="label">${key}${value ? `=${value}` : ""}</span>`);

export const Problem = ({ error }) => (error ? html`<p class="problem" role="alert">${error.message}</p>` : null);

export function Pager({ offset, limit, total, what, onOffset }) {
  if (total <= limit && !offset) return html`<p class="pager quiet">${total} ${total === 1 ? what.slice(0, -1) : what}</p>`;
  const last = Math.min(offset + limit, total);
  return html`<nav class="pager" aria-label="Pages">
    <button disabled=${offset === 0} onClick=${() => onOffset(Math.max(0, offset - limit))}>Previous</button>
    <span>${Math.min(offset + 1, total)} to ${last} of ${total} ${what}</span>
    <button disabled=${last >= total} onClick=${() => onOffset(offset + limit)}>Next</button>
  </nav>`;
}
