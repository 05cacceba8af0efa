// The manager of a job filesystem: whether one runs, how full it is, and what waits.

import { html, useEffect, useState } from "./preact.js";
import { age, get, jobPath, pageAddress, repeatedly, time } from "./api.js";

const REFRESH_MS = 3000;

export function useManager(connId) {
  const [manager, setManager] = useState(null);
  useEffect(() => {
    let current = true;
    setManager(null);
    const end = repeatedly(async () => {
      const found = await get("/manager", { conn_id: connId }).catch(() => null); // who sees no job sees no manager
      if (current) setManager(found);
    }, REFRESH_MS);
    return () => {
      current = false;
      end();
    };
  }, [connId]);
  return manager;
}

function Slots({ name, used, limit }) {
  const words = `${name}: ${used} of ${limit} slots used`;
  const share = limit ? Math.min(100, (100 * used) / limit) : 0;
  return html`<span class="slots" role="meter" aria-valuemin="0" aria-valuemax=${limit} aria-valuenow=${used} aria-valuetext=${words} aria-label="Slots of ${name}" title=${words}>
    ${name} <span class="bar" aria-hidden="true"><span class="running" style=${{ width: `${share}%` }}></span></span> <span class="number">${used} of ${limit}</span>
  </span>`;
}

const GIBIBYTE = 2 ** 30;

// What tasks leave of the machine, once one of them holds something.
function Free({ capacity }) {
  const shares = Object.entries(capacity || {});
  if (!shares.some(([, share]) => share.used > 0)) return null;
  const words = shares.map(([name, { used, limit }]) => {
    const [unit, of] = name === "memory" ? [GIBIBYTE, " GiB of memory"] : [1, ` ${name}`];
    const [free, all] = [Math.max(0, limit - used), limit].map((number) => +(number / unit).toFixed(1));
    return `${free} of ${all}${of}`;
  });
  return html`<span class="quiet">Free: ${words.join(", ")}</span>`;
}

function Queue({ manager, connId }) {
  const { queued, oldest_waiting: oldest } = manager;
  if (!queued && !oldest) return html`<span class="quiet">Nothing waits for room.</span>`;
  const job = oldest?.job ? html`<a href=${pageAddress(jobPath(oldest.job), { conn_id: connId })} title=${oldest.job}>the oldest job</a>` : "the oldest job";
  return html`<span>${queued} ${queued === 1 ? "task waits" : "tasks wait"} for room${oldest ? html`, ${job} for <span title=${time(oldest.since)}>${age(oldest.since)}</span>` : null}</span>`;
}

// `waiting` is how many jobs wait, as far as the user sees them.
export function Manager({ manager, connId, waiting }) {
  if (!manager) return null;
  if (manager.running === null) return html`<section class="manager off" aria-label="Manager"><p>${manager.problem}</p></section>`;
  if (!manager.running) {
    const wait = waiting ? ` ${waiting} ${waiting === 1 ? "job waits" : "jobs wait"}.` : "";
    return html`<section class="manager off" aria-label="Manager"><p><strong>No manager is running.</strong>${wait} ${
      manager.embedded
        ? "One starts by itself when a job is submitted, cancelled or retried."
        : manager.command
          ? html`Start one on the machine where the jobs are to run: <code>${manager.command}</code>`
          : "Jobs wait until somebody starts one (air-executor manager) on the machine where they are to run."
    }</p></section>`;
  }
  const slots = Object.entries(manager.slots);
  const process = manager.pid ? `, process ${manager.pid}${manager.host ? ` on ${manager.host}` : ""}` : "";
  return html`<section class="manager ${manager.paused ? "paused" : ""}" aria-label="Manager">
    <span title=${time(manager.started_at)}>Manager running${manager.started_at ? ` for ${age(manager.started_at)}` : ""}<span class="quiet">${manager.version ? `, version ${manager.version}` : ""}${process}</span></span>
    ${manager.paused ? html`<span><strong>Paused: no further task starts.</strong> <span class="quiet">Continue: air-executor resume</span></span>` : null}
    ${slots.map(([name, { used, limit }]) => html`<${Slots} key=${name} name=${name} used=${used} limit=${limit} />`)}
    <${Free} capacity=${manager.capacity} />
    ${manager.started_at ? html`<${Queue} manager=${manager} connId=${connId} />` : null}
  </section>`;
}
