// One job: how it stands, its tasks as a graph and along the time, and the log of one of them.

import { html, useCallback, useEffect, useMemo, useRef, useState } from "./preact.js";
import { age, apiAddress, duration, get, jobPath, post, taskPath, time } from "./api.js";
import { Graph, MAX_NODES, nearby } from "./graph.js";
import { FIRST_BYTES, Log } from "./log.js";
import { Labels, Owner, Pager, Problem, Progress, Status } from "./parts.js";
import { Timeline } from "./timeline.js";

const TASKS = 500; // that are loaded at a time
const PAUSE_MS = 500; // between two loads, at least
const TERMINAL = ["completed", "failed"];

const isOver = (job) => TERMINAL.includes(job.state);

// The job and its tasks; loaded again whenever `reload` is called, as often as the server bears it.
function useJob(name, connId, filter) {
  const [found, setFound] = useState({ job: null, tasks: [], total: 0, error: null });
  const load = useRef(null);
  useEffect(() => {
    let ended = false;
    let running = false;
    let again = false;
    load.current = async () => {
      if (running) return (again = true);
      running = true;
      const began = performance.now();
      try {
        const [job, list] = await Promise.all([
          get(jobPath(name), { conn_id: connId }),
          get(`${jobPath(name)}/tasks`, { conn_id: connId, limit: TASKS, ...filter }),
        ]);
        if (!ended) setFound({ job, tasks: list.tasks, total: list.total, error: null });
      } catch (error) {
        if (!ended) setFound((before) => ({ ...before, error }));
      }
      await new Promise((resolve) => setTimeout(resolve, Math.max(PAUSE_MS, 3 * (performance.now() - began))));
      running = false;
      if (again && !ended) {
        again = false;
        load.current();
      }
    };
    load.current();
    return () => (ended = true);
  }, [name, connId, JSON.stringify(filter)]);
  const reload = useCallback(() => load.current?.(), []);
  return { ...found, reload };
}

// One stream of events for the job and the log that is shown, so that a browser holds one connection a page.
function useEvents(name, connId, task, job, reload) {
  const log = useRef({ task: null, offset: 0, pieces: [], hear: null });
  if (log.current.task !== task) log.current = { task, offset: -FIRST_BYTES, pieces: [], hear: null };
  const mayRead = job?.may_read_logs && task;
  const version = job ? `${job.attempt} ${isOver(job)}` : null;
  useEffect(() => {
    if (version === null) return undefined;
    const current = log.current;
    const path = mayRead ? taskPath(name, task) : jobPath(name);
    const source = new EventSource(
      apiAddress(`${path}/events`, { conn_id: connId, offset: mayRead ? current.offset : undefined }),
    );
    let timer;
    source.addEventListener("changed", reload);
    source.addEventListener("log", (event) => {
      const { text, next_offset: offset } = JSON.parse(event.data);
      current.offset = offset;
      if (current.hear) current.hear(text);
      else current.pieces.push(text);
    });
    source.addEventListener("end", () => (source.close(), reload()));
    source.addEventListener("error", () => {
      if (source.readyState === EventSource.CLOSED) timer = setTimeout(reload, 5000);
    });
    return () => {
      clearTimeout(timer);
      source.close();
    };
  }, [name, connId, task, Boolean(mayRead), version]);
  return (listener, hear) => {
    const current = log.current;
    if (current.task !== listener) return undefined; // another task was chosen before this one had begun to listen
    for (const text of current.pieces.splice(0)) hear(text);
    current.hear = hear;
    return () => (current.hear = null);
  };
}

function useNow(isTicking) {
  const [now, setNow] = useState(Date.now());
  useEffect(() => {
    if (!isTicking) return undefined;
    const timer = setInterval(() => document.hidden || setNow(Date.now()), 1000);
    return () => clearInterval(timer);
  }, [isTicking]);
  return isTicking ? Math.max(now, Date.now()) : now;
}

function Actions({ job, connId, onDone }) {
  const dialog = useRef(null);
  const [busy, setBusy] = useState("");
  const [error, setError] = useState(null);
  useEffect(() => setBusy(""), [job.state, job.attempt, job.cancel_requested_at]);
  if (!job.may_edit) return null;
  const ask = async (what) => {
    dialog.current?.close();
    setBusy(what);
    try {
      await post(`${jobPath(job.name)}/${what}`, { conn_id: connId });
      setError(null);
      onDone();
    } catch (problem) {
      setError(problem);
      setBusy("");
    }
  };
  const isCancelled = busy === "cancel" || job.cancel_requested_at;
  return html`<div class="actions">
    ${isOver(job) ? null : html`<button class="danger" disabled=${Boolean(isCancelled)} onClick=${() => dialog.current.showModal()}>${isCancelled ? "Cancelling …" : "Cancel job"}</button>`}
    ${job.state === "failed" ? html`<button disabled=${busy === "retry"} onClick=${() => ask("retry")}>${busy === "retry" ? "Retrying …" : "Retry failed tasks"}</button>` : null}
    <${Problem} error=${error} />
    <dialog ref=${dialog} aria-labelledby="really">
      <p id="really">Cancel this job? Its running tasks are killed, and the others do not start.</p>
      <div class="actions"><button class="danger" onClick=${() => ask("cancel")}>Cancel the job</button><button onClick=${() => dialog.current.close()}>Let it run</button></div>
    </dialog>
  </div>`;
}

function Facts({ job, now }) {
  const seconds = job.started_at ? ((job.ended_at ? new Date(job.ended_at) : now) - new Date(job.started_at)) / 1000 : null;
  const facts = [
    ["Submitted", job.created_at && html`<span title=${time(job.created_at)}>${age(job.created_at)} ago</span>`],
    [isOver(job) ? "Took" : "Running for", duration(seconds)],
    ["Submitted by", job.owner && html`<${Owner} owner=${job.owner} />`],
    ["Run", job.owner?.run_id],
    ["Attempt", job.attempt > 1 && job.attempt],
    ["Parallel tasks", job.max_parallel_tasks],
    ["Timeout", duration(job.timeout)],
    ["Priority", job.priority || ""],
    ["Makes", job.outlets.join(", ")],
    ["Labels", Object.keys(job.labels).length > 0 && html`<${Labels} labels=${job.labels} />`],
  ];
  return html`<dl class="facts">${facts.map(([name, value]) => (value ? html`<div><dt>${name}</dt><dd>${value}</dd></div>` : null))}</dl>`;
}

function TaskPanel({ job, task, connId, listen, isChosen, onClose }) {
  const heading = useRef(null);
  useEffect(() => {
    if (isChosen && matchMedia("(max-width: 60rem)").matches) heading.current?.scrollIntoView({ block: "start" });
  }, [task.id, isChosen]);
  const facts = [
    ["Exit code", task.exit_code],
    ["Reason", task.reason],
    ["Attempts", task.attempts.length ? `${task.attempts.length}${task.retries ? ` of at most ${task.retries + 1}` : ""}` : null],
    ["Depends on", task.dependencies.join(", ")],
    ["Directory", task.cwd],
    ["Environment", task.environment.join(", ")],
    ["Timeout", duration(task.timeout)],
  ];
  return html`<section class="panel" aria-label="Task ${task.id}">
    <div class="head"><h2 ref=${heading}>${task.id}</h2><${Status} value=${task.status} /><button class="plain close" aria-label="Close the task" onClick=${onClose}>✕</button></div>
    <pre class="command">${task.command}</pre>
    ${task.error ? html`<p class="problem">${task.error}</p>` : null}
    <dl class="facts">${facts.map(([name, value]) => (value !== null && value !== "" && value !== undefined ? html`<div><dt>${name}</dt><dd>${value}</dd></div>` : null))}</dl>
    ${job.may_read_logs
      ? html`<${Log} key=${task.id} job=${job.name} task=${task.id} connId=${connId} listen=${listen} isLive=${!isOver(job)} />`
      : html`<p class="quiet">You may not read the logs of this DAG.</p>`}
  </section>`;
}

const STATUSES = ["", "running", "failed", "pending", "completed"];

function TaskFilter({ filter, total, onChange }) {
  return html`<form class="filters" onSubmit=${(event) => event.preventDefault()}>
    <label>Task <input type="search" value=${filter.text} placeholder="part of the id" onInput=${(event) => onChange({ text: event.target.value })} /></label>
    <label>Status <select value=${filter.status} onChange=${(event) => onChange({ status: event.target.value })}>${STATUSES.map((status) => html`<option value=${status}>${status || "any"}</option>`)}</select></label>
    <${Pager} offset=${filter.offset} limit=${TASKS} total=${total} what="tasks" onOffset=${(offset) => onChange({ offset })} />
  </form>`;
}

// What is shown of the job before somebody chooses a task: what went wrong, or what runs. It stays; who reads is not
// torn away when something else happens.
function interesting(tasks) {
  const failed = tasks.find((task) => task.status === "failed" && task.reason !== "dependency");
  return failed ?? tasks.find((task) => task.status === "running") ?? (tasks.length === 1 ? tasks[0] : undefined);
}

export function Job({ name, connId }) {
  const [filter, setFilter] = useState({ text: "", status: "", offset: 0 });
  const { job, tasks, total, error, reload } = useJob(name, connId, filter);
  const [chosen, setChosen] = useState(() => new URLSearchParams(location.hash.slice(1)).get("task"));
  const first = useRef(null);
  if (first.current === null) first.current = interesting(tasks)?.id ?? null;
  const shown = tasks.find((task) => task.id === (chosen ?? first.current));
  const listen = useEvents(name, connId, shown?.id ?? null, job, reload);
  const now = useNow(job !== null && !isOver(job));
  const select = (id) => {
    setChosen(id);
    history.replaceState(null, "", id ? `#${new URLSearchParams({ task: id })}` : location.pathname + location.search);
  };
  const drawn = useMemo(() => nearby(tasks, shown), [tasks, shown?.id]);
  if (job === null) return html`<${Problem} error=${error} />${error ? null : html`<p class="quiet">Loading …</p>`}`;
  const count = Object.values(job.task_counts).reduce((sum, number) => sum + number, 0);
  const isLinked = tasks.some((task) => task.dependencies.length);
  return html`<header class="job">
      <div class="head"><h1>${job.name}</h1><span aria-live="polite"><${Status} value=${job.state} reason=${job.reason} /></span><${Progress} counts=${job.task_counts} /><${Actions} job=${job} connId=${connId} onDone=${reload} /></div>
      <${Facts} job=${job} now=${now} />
      ${job.error ? html`<p class="problem">${job.error}</p>` : null}
      <${Problem} error=${error} />
    </header>
    <div class="columns ${shown ? "two" : ""}">
      <div class="tasks">
        ${isLinked ? html`<${Graph} tasks=${drawn} selected=${shown?.id} onSelect=${select} />${drawn.length < tasks.length ? html`<p class="quiet">The graph shows the ${MAX_NODES} tasks nearest to ${shown ? "the chosen one" : "what failed or runs"}.</p>` : null}` : null}
        ${count > 20 ? html`<${TaskFilter} filter=${filter} total=${total} onChange=${(what) => setFilter((before) => ({ ...before, offset: 0, ...what }))} />` : null}
        <div class="scroll"><${Timeline} job=${job} tasks=${tasks} selected=${shown?.id} onSelect=${select} now=${now} /></div>
      </div>
      ${shown ? html`<${TaskPanel} job=${job} task=${shown} connId=${connId} listen=${listen} isChosen=${chosen !== null} onClose=${() => select("")} />` : null}
    </div>`;
}
