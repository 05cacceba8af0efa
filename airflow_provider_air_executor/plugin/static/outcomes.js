// How a task or a job stands, in one word, and the sign that goes with it in lists, in the graph and along the time.

import { html } from "./preact.js";

const OF_FAILURES = { timeout: "timed_out", lost: "lost", cancelled: "cancelled", dependency: "upstream_failed" };

// In the order in which a bar has them.
export const OUTCOMES = ["completed", "skipped", "failed", "timed_out", "lost", "cancelled", "upstream_failed", "running", "pending"];

// Of several tasks, what somebody should look at first.
const URGENT = ["failed", "timed_out", "lost", "running", "cancelled", "upstream_failed", "pending", "skipped", "completed"];

// As jobs/outcomes.py has it; a test compares them. Of jobs, `waiting` and `working` stay as they are.
export function outcomeOf(status, reason) {
  if (status === "failed") return OF_FAILURES[reason] ?? "failed";
  return status === "completed" && reason === "skipped" ? "skipped" : status;
}

export const wordOf = (outcome) => outcome.replaceAll("_", " ");
export const mostUrgent = (counts) => URGENT.find((outcome) => counts[outcome]) ?? "pending";

// "2 failed, 3 running"
export const wordsOf = (counts) =>
  OUTCOMES.filter((outcome) => counts[outcome])
    .map((outcome) => `${counts[outcome]} ${wordOf(outcome)}`)
    .join(", ");

const CIRCLE = "M6 1.2a4.8 4.8 0 1 0 0 9.6a4.8 4.8 0 1 0 0-9.6z";
const RING = "M6 1.8a4.2 4.2 0 1 0 0 8.4a4.2 4.2 0 1 0 0-8.4z";

// Each has a shape of its own, for who does not tell colours apart: [what is filled, what is drawn as a line].
const SIGNS = {
  completed: [CIRCLE, ""],
  skipped: ["", "M1.8 2.2L5.6 6L1.8 9.8M6.4 2.2L10.2 6L6.4 9.8"],
  failed: ["M1.2 1.2h9.6v9.6h-9.6z", ""],
  timed_out: ["", `${RING}M6 3.6V6.2L7.9 7.4`],
  lost: ["M6 .8L11.4 10.8H.6z", ""],
  cancelled: ["", `${RING}M3.1 8.9L8.9 3.1`],
  upstream_failed: ["", "M1.9 1.9h8.2v8.2h-8.2z"],
  running: ["M6 1.2a4.8 4.8 0 0 1 0 9.6z", RING],
  pending: ["", RING],
};
SIGNS.working = SIGNS.running;
SIGNS.waiting = SIGNS.pending;

// The lines of a sign, 12 by 12; its colour is that of the element around it, which has the outcome as a class.
export function signPaths(outcome) {
  const [full, open] = SIGNS[outcome] ?? SIGNS.pending;
  return html`${full ? html`<path class="full" d=${full} />` : null}${open ? html`<path class="open" d=${open} />` : null}`;
}

export const Sign = ({ outcome }) => html`<svg class="sign" viewBox="0 0 12 12" aria-hidden="true">${signPaths(outcome)}</svg>`;
