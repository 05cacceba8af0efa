// The task that is chosen: what it is, what became of it, what can be asked of it, its result and its log.

import { html, useEffect, useRef, useState } from "./preact.js";
import { duration, get, getEventually, jobPath, post, repeatedly, taskPath, time } from "./api.js";
import { copy } from "./copy.js";
import { Log } from "./log.js";
import { Confirmed, Facts, Problem, Status, bytes } from "./parts.js";

const BUSY_MS = 1000; // between two looks at whether the manager has done what it was asked
const LONG = 400; // characters of a command that is shown in part at first

const RULES = { all_done: "when all of these have ended", any_failed: "if any of these has failed", always: "always, also when the job is cancelled" };

function Command({ job, task, connId, children }) {
  const dialog = useRef(null);
  const [whole, setWhole] = useState(null);
  const [isCopied, setCopied] = useState(false);
  useEffect(() => {
    setWhole(null);
    setCopied(false);
  }, [task.id]);
  // What the list has of a long command is cut.
  const load = async () => {
    if (!task.is_command_cut) return task.command;
    const found = whole ?? (await get(taskPath(job.name, task.id), { conn_id: connId }).then((answer) => answer.command, () => task.command));
    setWhole(found);
    return found;
  };
  const enlarge = () => {
    load();
    dialog.current.showModal();
  };
  return html`<div class="command-box">
    <pre class="command" tabindex="0" aria-label="Command of ${task.id}">${task.command}</pre>
    <div class="actions"><button type="button" class="small" onClick=${async () => setCopied(await copy(await load()))}>${isCopied ? "Copied" : "Copy command"}</button>
      ${task.is_command_cut || task.command.length > LONG || task.command.includes("\n") ? html`<button type="button" class="small" onClick=${enlarge}>Whole command</button>` : null}${children}</div>
    <dialog ref=${dialog} class="large" aria-label="Whole command of ${task.id}">
      <pre>${whole ?? task.command}</pre>
      <div class="actions"><button type="button" onClick=${() => dialog.current.close()}>Close</button></div>
    </dialog>
  </div>`;
}

// What can be asked of one task, for those who may.
function Actions({ job, task, connId, onDone }) {
  const [busy, setBusy] = useState("");
  const [error, setError] = useState(null);
  const last = task.attempts[task.attempts.length - 1];
  useEffect(() => setBusy(""), [job.name, task.id, task.status, last?.number]);
  useEffect(() => (busy ? repeatedly(onDone, BUSY_MS) : undefined), [busy]);
  if (!job.may_edit) return null;
  const ask = async (what) => {
    setBusy(what);
    setError(null);
    try {
      await post(`${jobPath(job.name)}/${what}`, { conn_id: connId, task: task.id });
      onDone();
    } catch (problem) {
      setError(problem);
      setBusy("");
    }
  };
  const isOver = ["completed", "failed"].includes(job.state);
  const isEnded = ["completed", "failed"].includes(task.status);
  const again = task.status === "failed" ? "Retry this task" : "Run this task again";
  const others = task.status === "failed" ? ", and the tasks that failed because of it" : "";
  return html`${isEnded && isOver ? html`<${Confirmed} size="small" label=${again} busyLabel="Starting …" isBusy=${busy === "retry"} yes="Run it again" no="Leave it" onYes=${() => ask("retry")}
      question=${`Run ${task.id} again${others}? Other tasks stay as they are.`} />` : null}
    ${!isEnded && !isOver ? html`<${Confirmed} size="small" label="Cancel this task" busyLabel="Cancelling …" isBusy=${busy === "cancel"} isDanger=${true} yes="Cancel the task" no="Let it run" onYes=${() => ask("cancel")}
      question="Cancel ${task.id}? Tasks that depend on it do not run; the others of the job go on." />` : null}
    <${Problem} error=${error} />`;
}

// What the task has left as its result.
function Result({ job, task, connId }) {
  const [found, setFound] = useState(null);
  const last = task.attempts[task.attempts.length - 1];
  const isAsked = task.status === "completed" && job.may_read_logs;
  useEffect(() => {
    setFound(null);
    if (!isAsked) return undefined;
    return getEventually(`${jobPath(job.name)}/results`, { conn_id: connId, task_id: task.id }, (answer) => setFound(answer?.results[0] ?? null));
  }, [job.name, task.id, isAsked, last?.number]);
  if (!found) return null;
  if (found.problem) return html`<p class="problem">${found.problem}</p>`;
  const text = typeof found.value === "string" ? found.value : JSON.stringify(found.value, null, 2);
  return html`<section aria-label="Result of ${task.id}"><div class="head"><h3>Result</h3><button type="button" class="small" onClick=${() => copy(text)}>Copy result</button></div><pre class="result" tabindex="0">${text}</pre></section>`;
}

const pairs = (values) => Object.entries(values).map(([key, value]) => `${key} ${typeof value === "object" ? JSON.stringify(value) : value}`);

function resources(found) {
  if (!found) return "";
  const parts = [found.cpus && `${found.cpus} CPUs`, found.memory && bytes(found.memory), found.gpus && `${found.gpus} GPUs`, found.time && `at most ${duration(found.time)}`];
  return parts.filter(Boolean).join(", ");
}

const moment = (text) => text && html`<time datetime=${text}>${time(text)}</time>`;

export function TaskPanel({ job, task, connId, events, isChosen, onClose, onDone }) {
  const heading = useRef(null);
  const panel = useRef(null);
  useEffect(() => {
    if (isChosen && matchMedia("(max-width: 60rem)").matches) heading.current?.scrollIntoView({ block: "start" });
  }, [task.id, isChosen]);
  useEffect(() => {
    // So that the end of the log is in sight, however far the page is scrolled.
    const look = () => panel.current.style.setProperty("--above", `${Math.max(16, Math.round(panel.current.parentElement.getBoundingClientRect().top))}px`);
    const observer = new ResizeObserver(look);
    observer.observe(document.querySelector("header.job"));
    window.addEventListener("scroll", look, { passive: true });
    look();
    return () => {
      observer.disconnect();
      window.removeEventListener("scroll", look);
    };
  }, []);
  const isOver = ["completed", "failed"].includes(job.state);
  const facts = [
    ["Exit code", task.exit_code ?? ""],
    ["Reason", task.reason],
    ["Attempts", task.attempts.length ? `${task.attempts.length}${task.retries ? ` of at most ${task.retries + 1}` : ""}` : ""],
    ["CPU time", task.usage?.cpu_seconds || task.usage?.cpu_seconds === 0 ? duration(task.usage.cpu_seconds) : ""],
    ["Peak memory", task.usage?.max_memory ? bytes(task.usage.max_memory) : ""],
    ["Depends on", task.dependencies.join(", ")],
    ["Runs", RULES[task.run_if]],
  ];
  const more = [
    ["Where", task.where],
    ["Runner", task.runner ?? job.runner],
    ["Resources", resources(task.resources)],
    ...Object.entries(task.options).map(([engine, options]) => [`Options of ${engine}`, html`<code>${pairs(options).join(", ")}</code>`]),
    ["Directory", task.cwd],
    ["Environment", task.environment.join(", ")],
    ["Timeout", duration(task.timeout)],
    ["Retry after", task.retry_delay ? duration(task.retry_delay) : ""],
    ["Submitted", moment(task.created_at)],
    ["Started", moment(task.started_at)],
    ["Ended", moment(task.completed_at)],
  ];
  return html`<section class="panel" ref=${panel} aria-label="Task ${task.id}">
    <div class="head"><h2 ref=${heading}>${task.id}</h2><${Status} value=${task.status} reason=${task.reason} /><button type="button" class="plain close" aria-label="Close the task" onClick=${onClose}>✕</button></div>
    <${Command} job=${job} task=${task} connId=${connId}><${Actions} job=${job} task=${task} connId=${connId} onDone=${onDone} /><//>
    ${task.error ? html`<p class="problem">${task.error}</p>` : null}
    <${Facts} facts=${facts} />
    <details><summary>How it is run</summary><${Facts} facts=${more} /></details>
    <${Result} job=${job} task=${task} connId=${connId} />
    ${job.may_read_logs
      ? html`<${Log} key=${events.identity} job=${job.name} task=${task} connId=${connId} follow=${events.follow} isLive=${!isOver} />`
      : html`<p class="quiet">You may not read the logs of this DAG.</p>`}
  </section>`;
}
