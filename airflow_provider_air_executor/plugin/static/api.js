// The JSON API, addresses, and how times are written.

const app = document.getElementById("app");
const root = app.dataset.root;
export const isEmbedded = window.parent !== window;
export const page = app.dataset;
export const query = new URLSearchParams(location.search);

const DEFAULT_CONNECTION = "air_executor_default";

export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

function address(path, parameters = {}) {
  const search = new URLSearchParams();
  for (const [key, value] of Object.entries(parameters)) {
    if (key === "conn_id" && value === DEFAULT_CONNECTION) continue;
    for (const one of [value].flat()) if (one !== undefined && one !== null && one !== "") search.append(key, one);
  }
  const text = search.toString();
  return `${root}${path}${text ? `?${text}` : ""}`;
}

export const airflowAddress = address;
export const apiAddress = (path, parameters) => address(`/air-executor/api${path}`, parameters);
export const pageAddress = (path, parameters) => address(`/air-executor${path}`, parameters);
export const jobPath = (name) => `/jobs/${encodeURIComponent(name)}`;
export const taskPath = (name, task) => `${jobPath(name)}/tasks/${encodeURIComponent(task)}`;

async function request(url, options) {
  let answer;
  try {
    answer = await fetch(url, { credentials: "same-origin", headers: { Accept: "application/json" }, ...options });
  } catch {
    throw new ApiError(0, "Airflow does not answer.");
  }
  const data = await answer.json().catch(() => null);
  if (answer.ok) return data;
  const detail = typeof data?.detail === "string" ? data.detail : answer.statusText;
  const words = { 401: "You are not logged in any more.", 403: "You may not do or see this." };
  throw new ApiError(answer.status, words[answer.status] ?? detail ?? `Error ${answer.status}`);
}

export const get = (path, parameters) => request(apiAddress(path, parameters));
export const getFromAirflow = (path, parameters) => request(address(`/api/v2${path}`, parameters));
export const post = (path, parameters) => request(apiAddress(path, parameters), { method: "POST" });

// A frame may not lead the page around it elsewhere; that page's own router is told instead.
export function followInAirflow(event) {
  if (!isEmbedded || event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
  event.preventDefault();
  const url = event.currentTarget.href;
  try {
    window.parent.history.pushState(null, "", url);
    window.parent.dispatchEvent(new window.parent.PopStateEvent("popstate", { state: null }));
  } catch {
    location.assign(url);
  }
}

function timeZone() {
  try {
    const stored = localStorage.getItem("timezone"); // as JSON
    const chosen = stored?.startsWith('"') ? JSON.parse(stored) : stored;
    new Intl.DateTimeFormat(undefined, { timeZone: chosen });
    return chosen || undefined;
  } catch {
    return undefined;
  }
}

const format = new Intl.DateTimeFormat(undefined, {
  dateStyle: "medium",
  timeStyle: "medium",
  timeZone: timeZone(),
});

export const time = (text) => (text ? format.format(new Date(text)) : "");

const UNITS = [
  [86400, "d"],
  [3600, "h"],
  [60, "m"],
];

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "";
  const rest = Math.max(0, seconds);
  for (const [index, [size, unit]] of UNITS.entries()) {
    if (rest < size) continue;
    const [smaller, name] = UNITS[index + 1] ?? [1, "s"];
    const more = Math.floor((rest % size) / smaller);
    return `${Math.floor(rest / size)} ${unit}${more ? ` ${more} ${name}` : ""}`;
  }
  if (rest > 0 && rest < 0.95) return `${Math.max(1, Math.round(1000 * rest))} ms`;
  return rest < 10 ? `${rest.toFixed(1)} s` : `${Math.floor(rest)} s`;
}

export const age = (text) => (text ? duration((Date.now() - new Date(text)) / 1000) : "");

// Calls what it is given when the page is hidden and when it is shown again; returns what ends that.
export function onVisibility(call) {
  const changed = () => call(!document.hidden);
  document.addEventListener("visibilitychange", changed);
  return () => document.removeEventListener("visibilitychange", changed);
}

// Calls `look` now and then again and again while the page can be seen; returns what ends that.
export function repeatedly(look, milliseconds) {
  let timer;
  let ended = false;
  const again = async () => {
    clearTimeout(timer);
    const began = performance.now();
    if (!document.hidden) await look();
    if (ended) return;
    clearTimeout(timer); // of another call meanwhile
    const pause = Math.max(milliseconds, 5 * (performance.now() - began));
    timer = setTimeout(again, pause);
  };
  const unlisten = onVisibility((isShown) => isShown && again());
  again();
  return () => {
    ended = true;
    clearTimeout(timer);
    unlisten();
  };
}
