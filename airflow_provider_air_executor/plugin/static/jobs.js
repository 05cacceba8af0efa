// The list of jobs: filters, a table, pages.

import { html, useEffect, useState } from "./preact.js";
import { age, duration, get, jobPath, pageAddress, query, repeatedly, time } from "./api.js";
import { Labels, Owner, Pager, Problem, Progress, Status } from "./parts.js";

const LIMIT = 50;
const REFRESH_MS = 3000;
const STATES = ["waiting", "working", "completed", "failed"];

export function JobTable({ jobs, connId, caption }) {
  return html`<table class="jobs cards">
    <caption class="hidden">${caption}</caption>
    <thead><tr>${["Job", "State", "Progress", "Age", "Duration", "Submitted by"].map((head) => html`<th scope="col">${head}</th>`)}</tr></thead>
    <tbody>${jobs.map(
      (job) => html`<tr key=${job.name}>
        <th scope="row"><a href=${pageAddress(jobPath(job.name), { conn_id: job.connId ?? connId })}>${job.name}</a> <${Labels} labels=${job.labels} /></th>
        <td data-label="State"><${Status} value=${job.state} reason=${job.reason} /></td>
        <td data-label="Progress"><${Progress} counts=${job.task_counts} /></td>
        <td data-label="Age" title=${time(job.created_at)}>${age(job.created_at)}</td>
        <td data-label="Duration">${duration(job.seconds)}</td>
        <td data-label="Submitted by"><${Owner} owner=${job.owner} /></td>
      </tr>`,
    )}</tbody>
  </table>`;
}

const initial = () => ({
  conn_id: query.get("conn_id") ?? "",
  name: query.get("name") ?? "",
  state: query.getAll("state").filter((state) => STATES.includes(state)),
  label: query.getAll("label"),
  offset: Math.max(0, Number.parseInt(query.get("offset"), 10) || 0),
});

export function Jobs() {
  const [asked, setAsked] = useState(initial);
  const [found, setFound] = useState(null);
  const [error, setError] = useState(null);
  const [connections, setConnections] = useState([]);
  const change = (what) => setAsked((before) => ({ ...before, offset: 0, ...what }));

  useEffect(() => {
    get("/connections").then(setConnections, () => {});
  }, []);
  useEffect(() => {
    history.replaceState(null, "", pageAddress("/jobs", { ...asked, offset: asked.offset || undefined }));
    let current = true;
    const end = repeatedly(async () => {
      try {
        const answer = await get("/jobs", { ...asked, limit: LIMIT });
        if (current) setFound(answer), setError(null);
      } catch (problem) {
        if (current) setError(problem);
      }
    }, REFRESH_MS);
    return () => {
      current = false;
      end();
    };
  }, [JSON.stringify(asked)]);

  const toggle = (state) =>
    change({ state: asked.state.includes(state) ? asked.state.filter((one) => one !== state) : [...asked.state, state] });
  return html`<h1>Air-Executor jobs</h1>
    <form class="filters" role="search" onSubmit=${(event) => event.preventDefault()}>
      <label>Name <input type="search" value=${asked.name} placeholder="part of the name" onInput=${(event) => change({ name: event.target.value })} /></label>
      <label>Label <input type="search" value=${asked.label.join(" ")} placeholder="key or key=value" onInput=${(event) => change({ label: event.target.value.split(/\s+/).filter(Boolean) })} /></label>
      ${connections.length > 1 ? html`<label>Connection <select value=${asked.conn_id || connections[0]} onChange=${(event) => change({ conn_id: event.target.value })}>${connections.map((id) => html`<option value=${id}>${id}</option>`)}</select></label>` : null}
      <div class="states" role="group" aria-label="States">${STATES.map(
        (state) => html`<button type="button" aria-pressed=${asked.state.includes(state)} onClick=${() => toggle(state)}><${Status} value=${state} /> <span class="quiet">${found?.state_counts[state] ?? ""}</span></button>`,
      )}</div>
    </form>
    <${Problem} error=${error} />
    ${found === null
      ? html`<p class="quiet">${error ? "" : "Loading …"}</p>`
      : html`${found.jobs.length ? html`<${JobTable} jobs=${found.jobs} connId=${asked.conn_id} caption="Jobs, the newest first" />` : html`<p class="empty">No job fits.</p>`}
        <${Pager} offset=${asked.offset} limit=${LIMIT} total=${found.total} what="jobs" onOffset=${(offset) => change({ offset })} />`}`;
}
