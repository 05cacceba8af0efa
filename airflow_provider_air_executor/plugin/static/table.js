// A table of jobs.

import { html, useEffect, useRef } from "./preact.js";
import { age, duration, followInAirflow, jobPath, pageAddress, time } from "./api.js";
import { Labels, Owner, Progress, Status } from "./parts.js";

// The age in its greatest unit; the whole time is the title.
const ago = (text) => (text ? `${age(text).split(" ").slice(0, 2).join(" ")} ago` : "");

// What is sorted by, the heading, and whether the greatest comes first.
const COLUMNS = [
  ["name", "Job", false],
  ["state", "State", false],
  [null, "Progress"],
  ["created", "Submitted", true],
  ["ended", "Ended", true],
  ["duration", "Duration", true],
  [null, "Submitted by"],
];

function Heading({ column: [name, words, isGreatestFirst], asked, onChange }) {
  if (!name || !onChange) return html`<th scope="col">${words}</th>`;
  const isChosen = asked.sort === name;
  const usual = isGreatestFirst ? "desc" : "asc";
  const other = asked.order === "asc" ? "desc" : "asc";
  const mark = isChosen ? (asked.order === "asc" ? "▲" : "▼") : "";
  return html`<th scope="col" aria-sort=${isChosen ? (asked.order === "asc" ? "ascending" : "descending") : undefined}>
    <button type="button" class="plain sort" onClick=${() => onChange({ sort: name, order: isChosen ? other : usual })}>${words} <span aria-hidden="true">${mark}</span></button>
  </th>`;
}

function Name({ job, connId, isInRun, onLabel }) {
  const ofDag = job.title && !isInRun ? html` <span class="quiet">of ${job.owner.dag_id}</span>` : null;
  return html`<a class="name" href=${pageAddress(jobPath(job.name), { conn_id: job.connId ?? connId })} title=${job.name}>${job.title ?? job.name}</a>${ofDag} <${Labels} labels=${job.labels} connId=${job.connId ?? connId} onLabel=${onLabel} />`;
}

// What is not said already: of a job with a generated name, which is that of the task and the DAG, the run; within a run,
// the task.
function By({ job: { owner, title }, isInRun }) {
  if (!owner || (!title && !isInRun)) return html`<${Owner} owner=${owner} />`;
  if (!isInRun) return html`<span class="owner"><a href=${owner.run_url} onClick=${followInAirflow}>${owner.run_id}</a></span>`;
  const mapped = owner.map_index >= 0 ? ` [${owner.map_index}]` : "";
  return html`<span class="owner">${owner.task_url ? html`<a href=${owner.task_url} onClick=${followInAirflow}>${owner.task_id}${mapped}</a>` : "the run"}${owner.callback ? html` <span class="quiet">(callback: ${owner.callback})</span>` : null}</span>`;
}

function Box({ label, isChecked, isMixed, onChange }) {
  const box = useRef(null);
  useEffect(() => {
    box.current.indeterminate = Boolean(isMixed);
  }, [isMixed, isChecked]);
  return html`<input ref=${box} type="checkbox" aria-label=${label} checked=${isChecked} onChange=${(event) => onChange(event.target.checked)} />`;
}

// `asked` and `onChange`: how it is sorted, if that can be chosen. `chosen`: names, and `onChoose(jobs, whether)`, if jobs
// can be chosen. `isInRun`: the page is about one DAG run, which need not be named.
export function JobTable({ jobs, connId, caption, asked, onChange, chosen, onChoose, onLabel, isInRun }) {
  const editable = onChoose ? jobs.filter((job) => job.may_edit) : [];
  const number = editable.filter((job) => chosen.has(job.name)).length;
  const choice = editable.length
    ? (job) => html`<td class="choice">${job.may_edit ? html`<${Box} label="Select ${job.title ?? job.name}" isChecked=${chosen.has(job.name)} onChange=${(whether) => onChoose([job], whether)} />` : null}</td>`
    : () => null;
  return html`<table class="jobs cards">
    <caption class="hidden">${caption}</caption>
    <thead><tr>
      ${editable.length ? html`<th scope="col" class="choice"><${Box} label="Select all jobs of this page" isChecked=${number === editable.length} isMixed=${number > 0 && number < editable.length} onChange=${(whether) => onChoose(editable, whether)} /></th>` : null}
      ${COLUMNS.map((column) => html`<${Heading} key=${column[1]} column=${column} asked=${asked} onChange=${onChange} />`)}
    </tr></thead>
    <tbody>${jobs.map(
      (job) => html`<tr key=${`${job.connId ?? ""} ${job.name}`} data-job=${job.name} class=${chosen?.has(job.name) ? "chosen" : ""}>
        ${choice(job)}
        <th scope="row"><${Name} job=${job} connId=${connId} isInRun=${isInRun} onLabel=${onLabel} /></th>
        <td data-label="State"><${Status} value=${job.state} reason=${job.reason} />${job.held_up ? html`<div class="why quiet">${job.held_up}</div>` : null}</td>
        <td data-label="Progress"><${Progress} counts=${job.outcome_counts} /></td>
        <td data-label="Submitted" title=${time(job.created_at)}>${ago(job.created_at)}</td>
        <td data-label="Ended" title=${time(job.ended_at)}>${ago(job.ended_at)}</td>
        <td data-label="Duration">${duration(job.seconds)}</td>
        <td data-label="Submitted by"><${By} job=${job} isInRun=${isInRun} /></td>
      </tr>`,
    )}</tbody>
  </table>`;
}
