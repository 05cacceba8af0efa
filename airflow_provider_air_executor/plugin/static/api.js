// The JSON API, addresses, and how times are written.

const app = document.getElementById("app");
const root = app.dataset.root;
export const isEmbedded = window.parent !== window;
export const page = app.dataset;
export const query = new URLSearchParams(location.search);

const DEFAULT_CONNECTION = "air_executor_default";

const AGAIN_MS = 3000; // before what did not answer is asked again

// `away` is there if the manager is on another machine that cannot be reached now: since when, if that is known.
export class ApiError extends Error {
  constructor(status, message, away = null) {
    super(message);
    this.status = status;
    this.away = away;
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
  if (!answer.ok) throw await refusal(answer);
  return answer.json().catch(() => null);
}

async function refusal(answer) {
  const data = await answer.json().catch(() => null);
  const detail = typeof data?.detail === "string" ? data.detail : answer.statusText;
  const words = { 401: "You are not logged in any more.", 403: "You may not do or see this." };
  const away = data !== null && typeof data === "object" && "away_since" in data ? { since: data.away_since } : null;
  return new ApiError(answer.status, words[answer.status] ?? (detail || `Error ${answer.status}`), away);
}

export const get = (path, parameters) => request(apiAddress(path, parameters));
export const getFromAirflow = (path, parameters) => request(address(`/api/v2${path}`, parameters));

// Asks until there is an answer, also if Airflow or a manager is away for a while; returns what ends that. `hear` gets
// null if it is refused.
export function getEventually(path, parameters, hear) {
  let timer;
  let ended = false;
  const ask = async () => {
    try {
      const found = await get(path, parameters);
      if (!ended) hear(found);
    } catch (error) {
      if (ended) return;
      if (error.status === 0 || error.away) timer = setTimeout(ask, AGAIN_MS);
      else hear(null);
    }
  };
  ask();
  return () => {
    ended = true;
    clearTimeout(timer);
  };
}

// A piece of text, and which headers came with it.
export async function getText(path, parameters) {
  let answer;
  try {
    answer = await fetch(apiAddress(path, parameters), { credentials: "same-origin", headers: { Accept: "text/plain, application/json" } });
  } catch {
    throw new ApiError(0, "Airflow does not answer.");
  }
  if (!answer.ok) throw await refusal(answer);
  return { text: await answer.text(), headers: answer.headers };
}

export const post = (path, parameters) => request(apiAddress(path, parameters), { method: "POST" });
export const postJson = (path, parameters, body) =>
  request(apiAddress(path, parameters), {
    method: "POST",
    headers: { Accept: "application/json", "Content-Type": "application/json" },
    body: JSON.stringify(body),
  });

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

export function timeZone() {
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

const clockFormat = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23", timeZone: timeZone() });

export const time = (text) => (text ? format.format(new Date(text)) : "");
export const clock = (milliseconds) => clockFormat.format(new Date(milliseconds)); // of the day

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
