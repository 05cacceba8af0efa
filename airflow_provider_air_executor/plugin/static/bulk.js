// What can be asked of several jobs at once.

import { html, useRef, useState } from "./preact.js";
import { postJson } from "./api.js";
import { Problem } from "./parts.js";

const MOST = 500; // jobs of one request
const NAMED = 5; // jobs in the question
const ACTIONS = {
  cancel: {
    fits: (job) => job.state === "waiting" || job.state === "working",
    word: "Cancel",
    keep: "Let them run",
    isDanger: true,
    means: "Their running tasks are killed, and the others do not start.",
    others: (number) => `${number === 1 ? "has" : "have"} ended already`,
    done: (number) => `${number} ${number === 1 ? "cancellation is" : "cancellations are"} requested.`,
  },
  retry: {
    fits: (job) => job.state === "failed",
    word: "Retry",
    keep: "Leave them",
    means: "Their failed tasks run again, and those that depend on them.",
    others: (number) => `${number === 1 ? "has" : "have"} not failed`,
    done: (number) => `${number} ${number === 1 ? "retry is" : "retries are"} requested.`,
  },
  remove: {
    fits: (job) => job.state === "completed" || job.state === "failed",
    word: "Remove",
    keep: "Keep them",
    isDanger: true,
    means: "Their logs, and the files in their directories, are gone for good. What is known of their end and duration stays in the history.",
    others: (number) => `${number === 1 ? "has" : "have"} not ended`,
    done: (number) => `${number} ${number === 1 ? "job is" : "jobs are"} removed.`,
  },
};
const jobsOf = (number) => `${number} ${number === 1 ? "job" : "jobs"}`;

function Question({ action, jobs, connId, onAnswer }) {
  const { fits, word, keep, means, isDanger, others: reason } = ACTIONS[action];
  const [isBusy, setBusy] = useState(false);
  const [error, setError] = useState(null);
  const shown = useRef(null);
  const all = jobs.filter(fits);
  const fitting = all.slice(0, MOST);
  const [others, left] = [jobs.length - all.length, all.length - fitting.length];
  const open = (dialog) => {
    if (dialog && !dialog.open) dialog.showModal();
    shown.current = dialog;
  };
  const ask = async () => {
    setBusy(true);
    try {
      const answers = await postJson("/jobs/bulk", { conn_id: connId }, { action, jobs: fitting.map((job) => job.name) });
      onAnswer({ action, answers });
    } catch (problem) {
      setError(problem);
      setBusy(false);
    }
  };
  return html`<dialog ref=${open} aria-labelledby="bulk-question" onClose=${() => onAnswer(null)}>
    <p id="bulk-question"><strong>${word} ${jobsOf(fitting.length)}?</strong> ${means}</p>
    <ul>${fitting.slice(0, NAMED).map((job) => html`<li>${job.title ? `${job.title} of ${job.owner.dag_id}` : job.name}</li>`)}${fitting.length > NAMED ? html`<li>and ${fitting.length - NAMED} more</li>` : null}</ul>
    ${others ? html`<p class="quiet">${others} of the ${jobs.length} selected ${reason(others)}.</p>` : null}
    ${left ? html`<p class="quiet">${left} more must wait for their turn: ${MOST} are asked at a time.</p>` : null}
    <${Problem} error=${error} />
    <div class="actions"><button type="button" class=${isDanger ? "danger" : ""} disabled=${isBusy} onClick=${ask}>${word} ${jobsOf(fitting.length)}</button><button type="button" onClick=${() => shown.current.close()}>${keep}</button></div>
  </dialog>`;
}

// `chosen` has the jobs by their names, as they were seen last.
export function Bulk({ chosen, connId, total, onAll, onDone, onClear }) {
  const [action, setAction] = useState(null);
  const [told, setTold] = useState(null);
  const jobs = [...chosen.values()];
  const answered = (answer) => {
    setAction(null);
    setTold(answer);
    if (answer) onDone(answer.answers.filter((one) => one.requested).map((one) => one.job));
  };
  const refused = told?.answers.filter((one) => !one.requested) ?? [];
  return html`<div class="bulk" role="region" aria-label="Selected jobs">
    ${jobs.length
      ? html`<strong>${jobsOf(jobs.length)} selected</strong>
        ${Object.entries(ACTIONS).map(([name, { fits, word, isDanger }]) => {
          const number = jobs.filter(fits).length;
          return html`<button type="button" class=${isDanger ? "danger" : ""} disabled=${!number} onClick=${() => setAction(name)}>${word} ${number || ""}</button>`;
        })}
        ${total > jobs.length ? html`<button type="button" onClick=${onAll}>Select ${total > MOST ? `the first ${MOST}` : `all ${total}`} that fit</button>` : null}
        <button type="button" class="plain" onClick=${onClear}>Clear</button>`
      : null}
    <span role="status">${told ? ACTIONS[told.action].done(told.answers.length - refused.length) : ""}</span>
    ${refused.length ? html`<div class="problem" role="alert">${refused.slice(0, NAMED).map((one) => html`<div>${one.job}: ${one.detail}</div>`)}${refused.length > NAMED ? html`<div>and ${refused.length - NAMED} more</div>` : null}</div>` : null}
    ${action ? html`<${Question} action=${action} jobs=${jobs} connId=${connId} onAnswer=${answered} />` : null}
  </div>`;
}
