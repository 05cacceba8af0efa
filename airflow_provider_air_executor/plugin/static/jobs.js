// The list of jobs: filters, the manager, a table, pages.

import { html, useEffect, useRef, useState } from "./preact.js";
import { get, getEventually, pageAddress, repeatedly } from "./api.js";
import { Bulk } from "./bulk.js";
import { Keys } from "./shortcuts.js";
import { Manager, useManager } from "./manager.js";
import { Pager, Problem, Status } from "./parts.js";
import { fromAddress, fromField, isFiltered, OUTCOMES_OF_JOBS, parametersOf, SINCE, toAddress, toField, withoutFilters } from "./query.js";
import { JobTable } from "./table.js";

const LIMIT = 50;
const MOST = 500; // jobs of one answer
const REFRESH_MS = 3000;
const STATES = { cancelled: "failed", timed_out: "failed", lost: "failed" };
const REASONS = { cancelled: "cancelled", timed_out: "timeout", lost: "lost" };

// What is asked for; each change is a step that the browser goes back to, but for what is typed letter by letter.
function useAsked() {
  const [asked, setAsked] = useState(() => fromAddress(location.search));
  const typed = useRef(null);
  useEffect(() => {
    const moved = () => {
      typed.current = null;
      setAsked(fromAddress(location.search));
    };
    window.addEventListener("popstate", moved);
    return () => window.removeEventListener("popstate", moved);
  }, []);
  const change = (what, field = null) => {
    const next = { ...asked, offset: 0, ...what };
    if (toAddress(next) === toAddress(asked)) return;
    if (field !== null && typed.current === field) history.replaceState(null, "", toAddress(next));
    else history.pushState(null, "", toAddress(next));
    typed.current = field;
    setAsked(next);
  };
  return [asked, change];
}

function useJobs(asked) {
  const [state, setState] = useState({ found: null, error: null });
  const load = useRef(null);
  useEffect(() => {
    let current = true;
    load.current = async () => {
      try {
        const found = await get("/jobs", { ...parametersOf(asked), limit: LIMIT });
        if (current) setState({ found, error: null });
      } catch (error) {
        if (current) setState((before) => ({ found: error.status === 0 || error.away ? before.found : null, error }));
      }
    };
    const end = repeatedly(() => load.current(), REFRESH_MS);
    return () => {
      current = false;
      end();
    };
  }, [JSON.stringify(asked)]);
  return { ...state, reload: () => load.current() };
}

function useListed(path, connId) {
  const [listed, setListed] = useState([]);
  useEffect(() => getEventually(path, { conn_id: connId }, (found) => setListed(found ?? [])), [path, connId]);
  return listed;
}

function Times({ asked, onChange }) {
  const [isOpen, setOpen] = useState(false);
  const isBetween = Boolean(asked.created_after || asked.created_before);
  const chosen = asked.since || (isBetween || isOpen ? "between" : "");
  const choose = (value) => {
    setOpen(value === "between");
    onChange({ since: value in SINCE ? value : "", ...(value === "between" ? {} : { created_after: "", created_before: "" }) });
  };
  const field = (name, words) => html`<label>${words} <input type="datetime-local" value=${toField(asked[name])} onChange=${(event) => onChange({ [name]: fromField(event.target.value) })} /></label>`;
  return html`<label>Submitted <select value=${chosen} onChange=${(event) => choose(event.target.value)}>
      <option value="">at any time</option>
      ${Object.entries(SINCE).map(([value, [words]]) => html`<option value=${value}>in the ${words}</option>`)}
      <option value="between">from … to …</option>
    </select></label>
    ${chosen === "between" ? html`${field("created_after", "From")}${field("created_before", "To")}` : null}`;
}

// What is filtered by, and has no field of its own; each can be taken away.
function Chips({ asked, onChange }) {
  const chips = [
    ...asked.label.map((label) => [label, { label: asked.label.filter((other) => other !== label) }]),
    ...asked.reason.map((reason) => [`reason: ${reason}`, { reason: asked.reason.filter((other) => other !== reason) }]),
    ...["run_id", "task_id", "map_index"].filter((name) => asked[name] !== "").map((name) => [`${name.replace("_", " ")}: ${asked[name]}`, { [name]: "" }]),
  ];
  return chips.map(([words, change]) => html`<button type="button" class="chip" key=${words} aria-label="Remove the filter ${words}" onClick=${() => onChange(change)}>${words} <span aria-hidden="true">✕</span></button>`);
}

function Filters({ asked, onChange, counts, search }) {
  const listedConnections = useListed("/connections", "");
  const connections = asked.conn_id && !listedConnections.includes(asked.conn_id) ? [...listedConnections, asked.conn_id] : listedConnections;
  const dags = useListed("/dags", asked.conn_id);
  const addLabel = (event) => {
    const labels = event.target.value.split(/\s+/).filter((label) => label && !asked.label.includes(label));
    event.target.value = "";
    if (labels.length) onChange({ label: [...asked.label, ...labels] });
  };
  const toggle = (outcome) => onChange({ outcome: OUTCOMES_OF_JOBS.filter((one) => asked.outcome.includes(one) !== (one === outcome)) });
  const listed = asked.dag_id && !dags.includes(asked.dag_id) ? [asked.dag_id, ...dags] : dags;
  return html`<form class="filters" role="search" onSubmit=${(event) => event.preventDefault()}>
    <label>Name <input ref=${search} type="search" value=${asked.name} placeholder="part of the name" onInput=${(event) => onChange({ name: event.target.value }, "name")} /></label>
    ${listed.length ? html`<label>DAG <select value=${asked.dag_id} onChange=${(event) => onChange({ dag_id: event.target.value })}><option value="">any</option>${listed.map((id) => html`<option value=${id}>${id}</option>`)}</select></label>` : null}
    <${Times} asked=${asked} onChange=${onChange} />
    <label>Label <input type="search" placeholder="key or key=value" onChange=${addLabel} /></label>
    ${connections.length > 1 ? html`<label>Connection <select value=${asked.conn_id || connections[0]} onChange=${(event) => onChange({ conn_id: event.target.value, dag_id: "" })}>${connections.map((id) => html`<option value=${id}>${id}</option>`)}</select></label>` : null}
    <div class="states" role="group" aria-label="States">${OUTCOMES_OF_JOBS.map(
      (outcome) => html`<button type="button" key=${outcome} aria-pressed=${asked.outcome.includes(outcome)} onClick=${() => toggle(outcome)}><${Status} value=${STATES[outcome] ?? outcome} reason=${REASONS[outcome]} /> <span class="quiet">${counts?.[outcome] ?? ""}</span></button>`,
    )}</div>
    <${Chips} asked=${asked} onChange=${onChange} />
    ${isFiltered(asked) ? html`<button type="button" class="plain" onClick=${() => onChange(withoutFilters(asked))}>Clear the filters</button>` : null}
  </form>`;
}

function Nothing({ asked, found, onChange }) {
  if (!found.is_empty) {
    return html`<p class="empty">No job fits${isFiltered(asked) ? html` these filters. <button type="button" class="plain" onClick=${() => onChange(withoutFilters(asked))}>Show all jobs</button>` : "."}</p>`;
  }
  if (!found.exists) return html`<p class="empty">There are no jobs, and the base path of this connection does not exist yet: the first job makes it. If jobs run already, the API server does not see the same directory as they do.</p>`;
  return html`<p class="empty">There are no jobs here yet, or none that you may see.</p>`;
}

// Where to go if the jobs of this connection cannot be shown.
function Elsewhere({ error, asked }) {
  return html`<${Problem} error=${error} /><p class="empty"><a href=${pageAddress("/jobs")}>${asked.conn_id ? "Jobs of the default connection" : "All jobs"}</a></p>`;
}

const rows = () => [...document.querySelectorAll("table.jobs tbody tr")];

// Moves the focus to the row after the one that has it, or before.
function move(step) {
  const all = rows();
  const at = all.findIndex((row) => row.contains(document.activeElement));
  const next = at < 0 ? (step > 0 ? 0 : all.length - 1) : Math.min(all.length - 1, Math.max(0, at + step));
  all[next]?.querySelector("a.name").focus();
  all[next]?.scrollIntoView({ block: "nearest" });
}

const choose = () => rows().find((row) => row.contains(document.activeElement))?.querySelector("input[type=checkbox]")?.click();

// The jobs that are chosen, by their names, as they were seen last.
function useChosen(asked, found) {
  const [chosen, setChosen] = useState(new Map());
  const { offset, sort, order, ...rest } = asked;
  useEffect(() => setChosen(new Map()), [JSON.stringify(rest)]);
  for (const job of found?.jobs ?? []) if (chosen.has(job.name)) chosen.set(job.name, job);
  const set = (jobs, whether) =>
    setChosen((before) => {
      const after = new Map(before);
      for (const job of jobs) whether ? after.set(job.name, job) : after.delete(job.name);
      return after;
    });
  return [chosen, set];
}

export function Jobs() {
  const [asked, change] = useAsked();
  const { found, error, reload } = useJobs(asked);
  const manager = useManager(asked.conn_id);
  const [chosen, setChosen] = useChosen(asked, found);
  const search = useRef(null);
  const page = (step) => {
    const offset = asked.offset + step * LIMIT;
    if (found && offset >= 0 && offset < found.total) change({ offset });
  };
  const keys = [
    ["j", "the next job", () => move(1)],
    ["k", "the job before", () => move(-1)],
    ["Enter", "open the job"],
    ["x", "select the job, or not", choose],
    ["/", "search", () => search.current.focus()],
    ["n", "the next page", () => page(1)],
    ["p", "the page before", () => page(-1)],
  ];
  const chooseAll = async () => {
    const { jobs } = await get("/jobs", { ...parametersOf({ ...asked, offset: 0 }), limit: MOST });
    setChosen(jobs.filter((job) => job.may_edit), true);
  };
  const addLabel = (label) => asked.label.includes(label) || change({ label: [...asked.label, label] });
  return html`<div class="head"><h1>Air-Executor jobs</h1><${Keys} keys=${keys} /></div>
    <${Manager} manager=${manager} connId=${asked.conn_id} waiting=${found?.outcome_counts.waiting ?? 0} />
    <${Filters} asked=${asked} onChange=${change} counts=${found?.outcome_counts} search=${search} />
    ${found === null
      ? error ? html`<${Elsewhere} error=${error} asked=${asked} />` : html`<p class="quiet">Loading …</p>`
      : html`<${Problem} error=${error} />
        <${Bulk} chosen=${chosen} connId=${asked.conn_id} total=${found.total} onAll=${chooseAll} onClear=${() => setChosen([...chosen.values()], false)} onDone=${(names) => (setChosen(names.map((name) => ({ name })), false), reload())} />
        ${found.jobs.length
          ? html`<${JobTable} jobs=${found.jobs} connId=${asked.conn_id} caption="Jobs" asked=${asked} onChange=${change} chosen=${chosen} onChoose=${setChosen} onLabel=${addLabel} />`
          : html`<${Nothing} asked=${asked} found=${found} onChange=${change} />`}
        ${found.unreadable ? html`<p class="problem">The API server may not read ${found.unreadable} more ${found.unreadable === 1 ? "job" : "jobs"}.</p>` : null}
        <${Pager} offset=${asked.offset} limit=${LIMIT} total=${found.total} what="jobs" onOffset=${(offset) => change({ offset })} addressOf=${(offset) => toAddress({ ...asked, offset })} />`}`;
}
