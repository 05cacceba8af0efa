// One job: how it stands, its tasks as a graph and along the time, and the log of one of them.

import { html, useCallback, useEffect, useRef, useState } from "./preact.js";
import { age, apiAddress, duration, get, jobPath, onVisibility, post, repeatedly, taskPath, time } from "./api.js";
import { Graph, MAX_NODES } from "./graph.js";
import { FIRST_BYTES, Log } from "./log.js";
import { Labels, Owner, Pager, Problem, Progress, Status } from "./parts.js";
import { Timeline } from "./timeline.js";

const TASKS = 500; // that are loaded at a time
const PAUSE_MS = 500; // between two loads, at least
const HEARTBEAT_MS = 5000; // between two loads, at most
const BROKEN_MS = 3000; // after which a stream that the server has refused is tried again
const BUSY_MS = 1000; // between two looks at whether the manager has done what it was asked
const TERMINAL = ["completed", "failed"];

const taskCount = (job) => Object.values(job.task_counts).reduce((sum, number) => sum + number, 0);
const isOver = (job) => TERMINAL.includes(job.state);

// The job, a page of its tasks, and the one that is to be shown, which may be on another page. All is loaded again
// whenever `reload` is called, as often as the server bears it, and now and then in any case: the stream of events may
// have broken, the job may be retried or replaced, or the server may have been away.
function useJob(name, connId, filter, chosen) {
  const [found, setFound] = useState({ job: null, tasks: [], total: 0, shown: undefined, drawn: [], error: null });
  const load = useRef(null);
  const first = useRef(null); // what is shown before somebody chooses
  useEffect(() => {
    let ended = false;
    let running = false;
    let again = false;
    const tasksWith = (parameters) => get(`${jobPath(name)}/tasks`, { conn_id: connId, ...parameters });
    const find = async (job, tasks) => {
      if (chosen === "") return undefined;
      const wanted = chosen ?? first.current;
      if (wanted !== null) return tasks.find((task) => task.id === wanted) ?? (await tasksWith({ task_id: wanted })).tasks[0];
      const seen = interesting(tasks);
      if (seen?.status === "failed" || !job.task_counts.failed) return seen;
      return interesting((await tasksWith({ status: "failed", limit: TASKS })).tasks) ?? seen;
    };
    // What the graph has: all tasks, or those near the one that is shown, or near what runs.
    const around = async (job, tasks, shown) => {
      const isWhole = taskCount(job) <= MAX_NODES;
      if (isWhole && tasks.length === taskCount(job)) return tasks;
      const near = shown ?? tasks.find((task) => task.status === "running") ?? tasks[0];
      return (await tasksWith(isWhole || !near ? { limit: MAX_NODES } : { near: near.id, limit: MAX_NODES })).tasks;
    };
    load.current = async () => {
      if (running) return (again = true);
      running = true;
      const began = performance.now();
      try {
        const [job, list] = await Promise.all([get(jobPath(name), { conn_id: connId }), tasksWith({ limit: TASKS, ...filter })]);
        const shown = await find(job, list.tasks);
        if (chosen === null) first.current = shown?.id ?? null;
        const drawn = await around(job, list.tasks, shown);
        if (!ended) setFound({ job, tasks: list.tasks, total: list.total, shown, drawn, error: null });
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
    const end = repeatedly(() => load.current(), HEARTBEAT_MS);
    return () => {
      ended = true;
      end();
    };
  }, [name, connId, chosen, JSON.stringify(filter)]);
  const reload = useCallback(() => load.current?.(), []);
  return { ...found, reload };
}

// One stream of events for the job and the log that is shown, so that a browser holds one connection a page; a page that
// is not seen holds none, since a browser has six for all of Airflow.
function useEvents(name, connId, task, job, reload) {
  const [isShown, setShown] = useState(!document.hidden);
  const [broken, setBroken] = useState(0); // how many streams have ended for another reason than the job's end
  const identity = `${job?.created_at} ${task}`; // a new job of the same name has new logs
  const log = useRef({ identity: null });
  if (log.current.identity !== identity) log.current = { identity, offset: -FIRST_BYTES, pieces: [], hear: null };
  const mayRead = Boolean(job?.may_read_logs && task);
  const version = job ? `${job.created_at} ${job.attempt} ${isOver(job)}` : null;
  useEffect(() => onVisibility(setShown), []);
  useEffect(() => {
    if (version === null || !isShown) return undefined;
    const current = log.current;
    const path = mayRead ? taskPath(name, task) : jobPath(name);
    const source = new EventSource(apiAddress(`${path}/events`, { conn_id: connId, offset: mayRead ? current.offset : undefined }));
    let timer;
    source.addEventListener("changed", reload);
    source.addEventListener("log", (event) => {
      const piece = JSON.parse(event.data);
      current.offset = piece.next_offset;
      if (current.hear) current.hear(piece);
      else current.pieces.push(piece);
    });
    source.addEventListener("end", () => {
      source.close();
      reload();
    });
    source.addEventListener("error", () => {
      if (source.readyState !== EventSource.CLOSED) return; // the browser connects again by itself
      timer = setTimeout(() => setBroken((number) => number + 1), BROKEN_MS);
      reload();
    });
    return () => {
      clearTimeout(timer);
      source.close();
    };
  }, [name, connId, task, mayRead, version, isShown, broken]);
  const listen = (hear) => {
    const current = log.current;
    if (current.identity !== identity) return undefined; // another task was chosen before this one had begun to listen
    for (const piece of current.pieces.splice(0)) hear(piece);
    current.hear = hear;
    return () => (current.hear = null);
  };
  return { identity, listen };
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
  useEffect(() => setBusy(""), [job.state, job.attempt, job.created_at]);
  useEffect(() => (busy ? repeatedly(onDone, BUSY_MS) : undefined), [busy]);
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
    ["Parallel tasks", job.max_parallel_tasks < taskCount(job) && job.max_parallel_tasks],
    ["Timeout", duration(job.timeout)],
    ["Priority", job.priority || ""],
    ["Makes", job.outlets.join(", ")],
    ["Labels", Object.keys(job.labels).length > 0 && html`<${Labels} labels=${job.labels} />`],
  ];
  return html`<dl class="facts">${facts.map(([name, value]) => (value ? html`<div><dt>${name}</dt><dd>${value}</dd></div>` : null))}</dl>`;
}

function TaskPanel({ job, task, connId, events, isChosen, onClose }) {
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
    ${task.where ? html`<p class="quiet">${task.where}</p>` : null}
    ${task.error ? html`<p class="problem">${task.error}</p>` : null}
    <dl class="facts">${facts.map(([name, value]) => (value !== null && value !== "" && value !== undefined ? html`<div><dt>${name}</dt><dd>${value}</dd></div>` : null))}</dl>
    ${job.may_read_logs
      ? html`<${Log} key=${events.identity} job=${job.name} task=${task.id} connId=${connId} listen=${events.listen} isLive=${!isOver(job)} />`
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
  const [chosen, setChosen] = useState(() => new URLSearchParams(location.hash.slice(1)).get("task"));
  const { job, tasks, total, drawn, error, reload, ...found } = useJob(name, connId, filter, chosen);
  const listed = chosen ? tasks.find((task) => task.id === chosen) : undefined; // at once, without asking the server
  const shown = listed ?? (chosen === null || found.shown?.id === chosen ? found.shown : undefined);
  const events = useEvents(name, connId, shown?.id ?? null, job, reload);
  const now = useNow(job !== null && !isOver(job));
  const select = (id) => {
    setChosen(id);
    history.replaceState(null, "", id ? `#${new URLSearchParams({ task: id })}` : location.pathname + location.search);
  };
  if (job === null) return html`<${Problem} error=${error} />${error ? null : html`<p class="quiet">Loading …</p>`}`;
  const count = taskCount(job);
  const isLinked = drawn.some((task) => task.dependencies.length);
  return html`<header class="job">
      <div class="head"><h1>${job.name}</h1><span aria-live="polite"><${Status} value=${job.state} reason=${job.reason} /></span><${Progress} counts=${job.task_counts} /><${Actions} job=${job} connId=${connId} onDone=${reload} /></div>
      <${Facts} job=${job} now=${now} />
      ${job.error ? html`<p class="problem">${job.error}</p>` : null}
      ${job.held_up ? html`<p class="quiet">${job.held_up}</p>` : null}
      <${Problem} error=${error} />
    </header>
    <div class="columns ${shown ? "two" : ""}">
      <div class="tasks">
        ${isLinked ? html`<${Graph} tasks=${drawn} selected=${shown?.id} onSelect=${select} />${drawn.length < count ? html`<p class="quiet">The graph shows ${drawn.length} of ${count} tasks: those nearest to ${shown ? shown.id : "what runs"}.</p>` : null}` : null}
        ${count > 20 ? html`<${TaskFilter} filter=${filter} total=${total} onChange=${(what) => setFilter((before) => ({ ...before, offset: 0, ...what }))} />` : null}
        <div class="scroll"><${Timeline} job=${job} tasks=${tasks} selected=${shown?.id} onSelect=${select} now=${now} /></div>
      </div>
      ${shown ? html`<${TaskPanel} job=${job} task=${shown} connId=${connId} events=${events} isChosen=${chosen !== null} onClose=${() => select("")} />` : null}
    </div>`;
}
