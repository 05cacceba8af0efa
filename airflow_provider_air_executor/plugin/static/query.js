// What the list is asked for, as the address of its page has it: back and forward, links and reloads keep it.

import { pageAddress, timeZone } from "./api.js";

export const SORTS = ["name", "state", "created", "ended", "duration"];
export const OUTCOMES_OF_JOBS = ["waiting", "working", "completed", "failed", "cancelled", "timed_out", "lost"];
export const SINCE = { "1h": ["last hour", 3600e3], "1d": ["last 24 hours", 86400e3], "7d": ["last 7 days", 604800e3] };
const OF_STATE = { failed: ["failed", "cancelled", "timed_out", "lost"] }; // addresses of earlier versions have states
const OWNER = ["run_id", "task_id", "map_index"];

export function fromAddress(search) {
  const query = new URLSearchParams(search);
  const one = (name) => query.get(name) ?? "";
  const outcomes = [...query.getAll("outcome"), ...query.getAll("state").flatMap((state) => OF_STATE[state] ?? [state])];
  return {
    conn_id: one("conn_id"),
    name: one("name"),
    outcome: OUTCOMES_OF_JOBS.filter((outcome) => outcomes.includes(outcome)),
    reason: query.getAll("reason"),
    label: query.getAll("label"),
    dag_id: one("dag_id"),
    ...Object.fromEntries(OWNER.map((name) => [name, one(name)])),
    since: one("since") in SINCE ? one("since") : "",
    created_after: timeOr("", one("created_after")),
    created_before: timeOr("", one("created_before")),
    sort: SORTS.includes(one("sort")) ? one("sort") : "created",
    order: one("order") === "asc" ? "asc" : "desc",
    offset: Math.max(0, Number.parseInt(one("offset"), 10) || 0),
  };
}

const timeOr = (other, text) => (Number.isNaN(Date.parse(text)) ? other : new Date(text).toISOString());

export function toAddress(asked) {
  const { sort, order, offset, ...rest } = asked;
  const isUsual = sort === "created" && order === "desc";
  return pageAddress("/jobs", { ...rest, ...(isUsual ? {} : { sort, order }), offset: offset || undefined });
}

// The parameters for the API.
export function parametersOf(asked) {
  const { since, ...rest } = asked;
  return since ? { ...rest, created_after: new Date(Date.now() - SINCE[since][1]).toISOString() } : rest;
}

const NONE = { name: "", outcome: [], reason: [], label: [], dag_id: "", run_id: "", task_id: "", map_index: "", since: "", created_after: "", created_before: "" };

export const withoutFilters = (asked) => ({ ...asked, ...NONE, offset: 0 });
export const isFiltered = (asked) => Object.entries(NONE).some(([name, none]) => String(asked[name]) !== String(none));

// -- times of day in the zone that Airflow shows them in, as fields for them have them ----------------------

const parts = new Intl.DateTimeFormat("en-CA", { timeZone: timeZone(), hourCycle: "h23", year: "numeric", month: "2-digit", day: "2-digit", hour: "2-digit", minute: "2-digit" });

export function toField(text) {
  if (!text) return "";
  const found = Object.fromEntries(parts.formatToParts(new Date(text)).map(({ type, value }) => [type, value]));
  return `${found.year}-${found.month}-${found.day}T${found.hour}:${found.minute}`;
}

export function fromField(text) {
  const wanted = Date.parse(`${text}Z`);
  if (Number.isNaN(wanted)) return "";
  let at = wanted;
  for (let turn = 0; turn < 2; turn += 1) at += wanted - Date.parse(`${toField(at)}Z`); // the offset may change in between
  return new Date(at).toISOString();
}
