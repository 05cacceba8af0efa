// One job: how it stands, its tasks as a graph and along the time, and one of them with its log.

import { html, useCallback, useEffect, useMemo, useRef, useState } from "./preact.js";
import { age, apiAddress, duration, get, getEventually, jobPath, onVisibility, post, query, repeatedly, taskPath, time } from "./api.js";
import { Durations } from "./durations.js";
import { Graph } from "./graph.js";
import { OUTCOMES, outcomeOf, wordOf } from "./outcomes.js";
import { Confirmed, Facts, Labels, Owner, Pager, Problem, Progress, Status } from "./parts.js";
import { Keys } from "./shortcuts.js";
import { TaskPanel } from "./task.js";
import { Timeline } from "./timeline.js";

const TASKS = 500; // that are loaded at a time
const PAUSE_MS = 500; // between two loads, at least
const HEARTBEAT_MS = 5000; // between two loads, at most
const BROKEN_MS = 3000; // after which a stream that the server has refused is tried again
const BUSY_MS = 1000; // between two looks at whether the manager has done what it was asked
const MAX_GRAPH = 20_000; // tasks; of more, the graph has those near the chosen one
const NEAR = 2000; // those
const TERMINAL = ["completed", "failed"];
const CAUSES = ["failed", "timed_out", "lost"]; // of a job's failure

const taskCount = (job) => Object.values(job.task_counts).reduce((sum, number) => sum + number, 0);
const isOver = (job) => TERMINAL.includes(job.state);

// What is as it was stays the same object, so that nothing is drawn anew for it.
function unchanged(before, now) {
  return before !== null && JSON.stringify(before) === JSON.stringify(now) ? before : now;
}

function unchangedTasks(before, now) {
  const known = new Map(before.map((task) => [task.id, task]));
  const tasks = now.map((task) => unchanged(known.get(task.id) ?? null, task));
  return tasks.length === before.length && tasks.every((task, at) => task === before[at]) ? before : tasks;
}

function graphOf(tasks) {
  const numbers = new Map(tasks.map((task, number) => [task.id, number]));
  return {
    ids: tasks.map((task) => task.id),
    dependencies: tasks.map((task) => task.dependencies.map((id) => numbers.get(id)).filter((number) => number !== undefined)),
    outcomes: tasks.map((task) => outcomeOf(task.status, task.reason)),
  };
}

// The job, a page of its tasks, and the one that is to be shown, which may be on another page. All is loaded again
// whenever `reload` is called, as often as the server bears it, and now and then in any case: the stream of events may
// have broken, the job may be retried or replaced, or the server may have been away.
function useJob(name, connId, filter, chosen) {
  const [found, setFound] = useState({ job: null, tasks: [], total: 0, busy: [], shown: undefined, graph: null, error: null });
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
      if ((seen && isCause(seen)) || !CAUSES.some((outcome) => job.outcome_counts[outcome])) return seen;
      return (await tasksWith({ outcome: CAUSES, limit: 1 })).tasks[0] ?? seen;
    };
    // All tasks, or of very many those near the one that is shown, or near what runs.
    const draw = async (job, tasks, shown) => {
      const count = taskCount(job);
      if (tasks.length === count) return graphOf(tasks);
      const near = shown ?? tasks.find((task) => task.status === "running") ?? tasks[0];
      return get(`${jobPath(name)}/graph`, { conn_id: connId, ...(count > MAX_GRAPH && near ? { near: near.id, limit: NEAR } : {}) });
    };
    load.current = async () => {
      if (running) return (again = true);
      running = true;
      const began = performance.now();
      try {
        const [job, list] = await Promise.all([get(jobPath(name), { conn_id: connId }), tasksWith({ limit: TASKS, ...filter })]);
        const shown = await find(job, list.tasks);
        if (chosen === null) first.current = shown?.id ?? null;
        const graph = await draw(job, list.tasks, shown);
        if (!ended)
          setFound((before) => ({
            job,
            tasks: unchangedTasks(before.tasks, list.tasks),
            total: list.total,
            busy: unchanged(before.busy, list.busy),
            shown,
            graph: unchanged(before.graph, graph),
            error: null,
          }));
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
// is not seen holds none, since a browser has six for all of Airflow. Where in the log the stream begins, the log says when
// it has loaded what is before: until then there is no stream.
function useEvents(name, connId, task, job, reload) {
  const [isShown, setShown] = useState(!document.hidden);
  const [broken, setBroken] = useState(0); // how many streams have ended for another reason than the job's end
  const [turn, setTurn] = useState(0);
  const identity = `${job?.created_at} ${task}`; // a new job of the same name has new logs
  const log = useRef({ identity: null });
  if (log.current.identity !== identity) log.current = { identity, offset: undefined, hear: null };
  const mayRead = Boolean(job?.may_read_logs && task);
  const version = job ? `${job.created_at} ${job.attempt} ${isOver(job)}` : null;
  const isReady = !mayRead || log.current.offset !== undefined;
  const isFollowed = mayRead && log.current.offset !== null;
  useEffect(() => onVisibility(setShown), []);
  useEffect(() => {
    if (version === null || !isShown || !isReady) return undefined;
    const current = log.current;
    const { hear } = current;
    const path = isFollowed ? taskPath(name, task) : jobPath(name);
    const source = new EventSource(apiAddress(`${path}/events`, { conn_id: connId, offset: isFollowed ? current.offset : undefined }));
    let timer;
    source.addEventListener("changed", reload);
    source.addEventListener("log", (event) => {
      if (current.hear !== hear) return; // another stream goes on with the log
      const piece = JSON.parse(event.data);
      current.offset = piece.next_offset;
      hear(piece);
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
  }, [name, connId, task, isFollowed, version, isShown, isReady, broken, turn]);
  // The stream goes on with the log from this offset, and `hear` gets what comes; without an offset it leaves the log out.
  const follow = (offset, hear) => {
    const current = log.current;
    if (current.identity !== identity) return; // another task has been chosen meanwhile
    [current.offset, current.hear] = [offset, hear];
    setTurn((number) => number + 1);
  };
  return { identity, follow };
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

// What can be asked of the job as a whole, for those who may.
function Actions({ job, connId, onDone }) {
  const [busy, setBusy] = useState("");
  const [error, setError] = useState(null);
  useEffect(() => setBusy(""), [job.state, job.attempt, job.created_at]);
  useEffect(() => (busy ? repeatedly(onDone, BUSY_MS) : undefined), [busy]);
  if (!job.may_edit) return null;
  const ask = async (what, more) => {
    setBusy(what);
    try {
      await post(`${jobPath(job.name)}/${what}`, { conn_id: connId, ...more });
      setError(null);
      onDone();
    } catch (problem) {
      setError(problem);
      setBusy("");
    }
  };
  const isCancelled = busy === "cancel" || job.cancel_requested_at !== null;
  const isRetried = busy === "retry";
  return html`<div class="actions">
    ${isOver(job) ? null : html`<${Confirmed} label="Cancel job" busyLabel="Cancelling …" isBusy=${isCancelled} isDanger=${true} yes="Cancel the job" no="Let it run" onYes=${() => ask("cancel")}
      question="Cancel this job? Its running tasks are killed, and the others do not start." />`}
    ${job.state === "failed" ? html`<button type="button" disabled=${isRetried} onClick=${() => ask("retry")}>${isRetried ? "Retrying …" : "Retry failed tasks"}</button>` : null}
    ${isOver(job) ? html`<${Confirmed} label="Run all again" busyLabel="Starting …" isBusy=${isRetried} yes="Run all again" no="Leave it" onYes=${() => ask("retry", { all: 1 })}
      question=${`Run all ${taskCount(job)} tasks of this job again, also those that have completed?`} />` : null}
    <${Problem} error=${error} />
  </div>`;
}

function secondsOf(job, now) {
  return job.started_at ? ((job.ended_at ? new Date(job.ended_at) : now) - new Date(job.started_at)) / 1000 : null;
}

const moment = (text, more) => text && html`<time datetime=${text} title=${time(text)}>${time(text)}${more ? html` <span class="quiet">${more}</span>` : null}</time>`;

function JobFacts({ job, now }) {
  return html`<${Facts} facts=${[
    ["Name", job.title && html`<code>${job.name}</code>`],
    ["Submitted", moment(job.created_at, `${age(job.created_at)} ago`)],
    ["Started", moment(job.started_at)],
    ["Ended", moment(job.ended_at)],
    [isOver(job) ? "Took" : "Running for", duration(secondsOf(job, now))],
    ["Submitted by", job.owner && html`<${Owner} owner=${job.owner} />`],
    ["Run", job.owner?.run_id],
    ["Attempt", job.attempt > 1 && job.attempt],
    ["Parallel tasks", job.max_parallel_tasks < taskCount(job) && job.max_parallel_tasks],
    ["Runner", job.runner],
    ["Timeout", duration(job.timeout)],
    ["Priority", job.priority || ""],
    ["Makes", job.outlets.join(", ")],
    ["Labels", Object.keys(job.labels).length > 0 && html`<${Labels} labels=${job.labels} />`],
  ]} />`;
}

// The runs of the same series before this one; loaded again when this one has ended.
function useDurations(job, connId) {
  const [runs, setRuns] = useState([]);
  const isEnded = job !== null && isOver(job);
  useEffect(() => {
    if (job === null) return undefined;
    return getEventually(`${jobPath(job.name)}/durations`, { conn_id: connId }, (answer) => answer && setRuns(answer.runs));
  }, [job?.name, job?.created_at, isEnded, connId]);
  return runs;
}

function TaskFilter({ filter, total, counts, onChange, field }) {
  return html`<form class="filters" role="search" onSubmit=${(event) => event.preventDefault()}>
    <label>Task <input ref=${field} type="search" value=${filter.text} placeholder="part of the id" onInput=${(event) => onChange({ text: event.target.value })} /></label>
    <label>Status <select value=${filter.outcome} onChange=${(event) => onChange({ outcome: event.target.value })}><option value="">any</option>${OUTCOMES.filter((outcome) => counts[outcome] || filter.outcome === outcome).map((outcome) => html`<option value=${outcome}>${wordOf(outcome)} (${counts[outcome] ?? 0})</option>`)}</select></label>
    <${Pager} offset=${filter.offset} limit=${TASKS} total=${total} what="tasks" onOffset=${(offset) => onChange({ offset })} />
  </form>`;
}

const isCause = (task) => CAUSES.includes(outcomeOf(task.status, task.reason));

// What is shown of the job before somebody chooses a task: what went wrong, or what runs. It stays; who reads is not
// torn away when something else happens.
function interesting(tasks) {
  return tasks.find(isCause) ?? tasks.find((task) => task.status === "running") ?? (tasks.length === 1 ? tasks[0] : undefined);
}

const initialFilter = () => ({
  text: query.get("text") ?? "",
  outcome: OUTCOMES.includes(query.get("outcome")) ? query.get("outcome") : "",
  offset: Math.max(0, Number.parseInt(query.get("offset"), 10) || 0),
});

// The filter and the chosen task are in the address, so that it can be handed on.
function putInAddress(filter, chosen) {
  const search = new URLSearchParams(location.search);
  for (const [key, value] of Object.entries(filter))
    if (value) search.set(key, value);
    else search.delete(key);
  const hash = chosen ? `#${new URLSearchParams({ task: chosen })}` : "";
  history.replaceState(null, "", `${location.pathname}${search.size ? `?${search}` : ""}${hash}`);
}

export function Job({ name, connId }) {
  const [filter, setFilter] = useState(initialFilter);
  const [chosen, setChosen] = useState(() => new URLSearchParams(location.hash.slice(1)).get("task"));
  const { job, tasks, total, busy, graph, error, reload, ...found } = useJob(name, connId, filter, chosen);
  const listed = chosen ? tasks.find((task) => task.id === chosen) : undefined; // at once, without asking the server
  const shown = listed ?? (chosen === null || found.shown?.id === chosen ? found.shown : undefined);
  const events = useEvents(name, connId, shown?.id ?? null, job, reload);
  const now = useNow(job !== null && !isOver(job) && !error?.away);
  const runs = useDurations(job, connId);
  const field = useRef(null);
  const current = useRef(null); // the task that is shown, or will be: keys may come faster than the page is drawn
  current.current = shown?.id ?? chosen;
  const select = (id) => {
    current.current = id;
    setChosen(id);
    putInAddress(filter, id);
  };
  const change = (what) => {
    const next = { ...filter, offset: 0, ...what };
    setFilter(next);
    putInAddress(next, chosen);
  };
  const step = (by) => {
    if (!tasks.length) return;
    const at = tasks.findIndex((task) => task.id === current.current);
    const next = at < 0 ? (by > 0 ? 0 : tasks.length - 1) : Math.min(tasks.length - 1, Math.max(0, at + by));
    select(tasks[next].id);
    setTimeout(() => document.querySelector(".timeline tr.selected")?.scrollIntoView({ block: "nearest" }), 60); // when it is drawn
  };
  const keys = [
    ["j", "the next task", () => step(1)],
    ["k", "the task before", () => step(-1)],
    ["/", "search the log, or the list of tasks", () => (document.querySelector(".log .find") ?? field.current)?.focus()],
    ["f", "follow the log, or stop following it", () => document.querySelector(".log .follow")?.click()],
    ["Escape", "close the task", () => shown && select("")],
  ];
  const isLinked = useMemo(() => graph?.dependencies.some((list) => list.length) ?? false, [graph]);
  if (job === null) return html`<${Problem} error=${error} />${error ? null : html`<p class="quiet">Loading …</p>`}`;
  const count = taskCount(job);
  return html`${error?.away ? html`<${Problem} error=${error} />` : null}<header class="job">
      <div class="head"><h1 title=${job.name}>${job.title ?? job.name}</h1><span aria-live="polite"><${Status} value=${job.state} reason=${job.reason} /></span><${Progress} counts=${job.outcome_counts} /><${Actions} job=${job} connId=${connId} onDone=${reload} /><${Keys} keys=${keys} /></div>
      <${JobFacts} job=${job} now=${now} />
      <${Durations} job=${job} runs=${runs} seconds=${secondsOf(job, now)} isOver=${isOver(job)} connId=${connId} />
      ${job.error ? html`<p class="problem">${job.error}</p>` : null}
      ${job.held_up ? html`<p class="quiet">${job.held_up}</p>` : null}
      ${error?.away ? null : html`<${Problem} error=${error} />`}
    </header>
    <div class="columns ${shown ? "two" : ""}">
      <div class="tasks">
        ${isLinked ? html`<${Graph} graph=${graph} selected=${shown?.id} onSelect=${select} />${graph.ids.length < count ? html`<p class="quiet">The graph has ${graph.ids.length} of ${count} tasks: those nearest to ${shown ? shown.id : "the first ones"}.</p>` : null}` : null}
        ${count > 20 ? html`<${TaskFilter} filter=${filter} total=${total} counts=${job.outcome_counts} onChange=${change} field=${field} />` : null}
        <div class="scroll"><${Timeline} job=${job} tasks=${tasks} busy=${busy} selected=${shown?.id} onSelect=${select} now=${now} /></div>
      </div>
      ${shown ? html`<${TaskPanel} job=${job} task=${shown} connId=${connId} events=${events} isChosen=${chosen !== null} onClose=${() => select("")} onDone=${reload} />` : null}
    </div>`;
}
