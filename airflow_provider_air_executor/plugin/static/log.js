// What a task has printed, as it comes: one attempt or all, the lines in sight of a window of the file (lines.js).

import { html, useEffect, useLayoutEffect, useMemo, useRef, useState } from "./preact.js";
import { apiAddress, clock, duration, get, getText, taskPath, time } from "./api.js";
import { looksOf, segmentsOf } from "./ansi.js";
import { copy } from "./copy.js";
import { Lines, PIECE, findIn, lineAt, rowsOf, timeOf } from "./lines.js";
import { outcomeOf, wordOf } from "./outcomes.js";
import { bytes } from "./parts.js";

const FIRST_BYTES = 65_536; // of a long log, its end
const MORE_BYTES = 524_288; // that a click loads
const ROW = 19; // pixels, as style.css has it
const OVERSCAN = 40; // rows above and below those in sight
const MAX_AT_ONCE = 1500; // rows that are all in the page, so that the browser's own search and selection have them
const LONG = 12; // rows that have some room whatever else is shown of the task
const NEAR_END = 24; // pixels
const AGAIN_MS = 3000; // before a log that could not be read is asked for again
const TIMES_MS = 2500; // between two looks at when lines came
const SEARCH_MS = 8; // of a step of a search, between which the page answers
const MAX_FOUND = 10_000;
const STORED = "air-executor-log"; // what somebody has chosen

const defaults = { wrap: true, numbers: false, times: false };

function useChoices() {
  const [choices, setChoices] = useState(() => {
    try {
      return { ...defaults, ...JSON.parse(localStorage.getItem(STORED)) };
    } catch {
      return defaults;
    }
  });
  const change = (what) => {
    const next = { ...choices, ...what };
    setChoices(next);
    try {
      localStorage.setItem(STORED, JSON.stringify(next));
    } catch {
      // storage may be switched off
    }
  };
  return [choices, change];
}

// Which part of the file is looked at: that of an attempt, or all. The last attempt has no end yet.
function boundsOf(attempts, wanted) {
  const last = attempts[attempts.length - 1];
  if (wanted === "all" || !last) return { begin: 0, end: null };
  const found = wanted === "last" ? last : (attempts.find(({ number }) => number === wanted) ?? last);
  return { begin: found.begin, end: found === last ? null : found.end };
}

// The window of the log, and what changes it. `follow` is given where to go on, and what hears of more.
function useWindow(path, connId, wanted, newest, follow) {
  const model = useRef(new Lines());
  const bounds = useRef({ begin: 0, end: null });
  const [state, setState] = useState({ version: 0, isLoaded: false, error: null, attempts: [], times: [], number: null, size: 0 });
  const turn = useRef(0);
  const tell = (what) => setState((before) => ({ ...before, ...what, version: before.version + 1 }));
  const read = async (offset, limit, more) => {
    const { text, headers } = await getText(`${path}/log`, { conn_id: connId, offset, limit, ...more });
    const number = headers.get("X-Line-Number");
    return { text, offset: Number(headers.get("X-Offset")), next: Number(headers.get("X-Next-Offset")), number: number === null ? null : Number(number) };
  };
  // Begins anew: at the end, at the beginning, or around an offset.
  const open = async (where) => {
    const mine = (turn.current += 1);
    try {
      const about = await get(`${path}/log/times`, { conn_id: connId, offset: -FIRST_BYTES });
      const { begin, end } = boundsOf(about.attempts, wanted);
      const to = end ?? about.size;
      const from = where === "begin" ? begin : Math.max(begin, where === "end" ? to - FIRST_BYTES : where - MORE_BYTES / 2);
      const limit = Math.min(to - from, where === "end" ? FIRST_BYTES : MORE_BYTES);
      const piece = await read(from, limit, { whole_lines: from > begin, numbered: true });
      if (mine !== turn.current) return;
      model.current = new Lines();
      bounds.current = { begin, end };
      model.current.append(piece.text, piece.offset, piece.next);
      model.current.dropped = where !== "end" && piece.next < to;
      tell({ isLoaded: true, error: null, attempts: about.attempts, times: about.times, number: piece.number, size: about.size });
      follow(end === null && !model.current.dropped ? piece.next : null, ({ text, offset, next_offset: next }) => {
        if (mine !== turn.current || model.current.dropped) return;
        const isNew = offset < model.current.end;
        model.current.append(text, offset, next);
        if (isNew) bounds.current = { begin: 0, end: null };
        tell({ size: next, ...(isNew ? { number: null } : {}) });
      });
    } catch (error) {
      if (mine !== turn.current) return;
      tell({ error });
      follow(null, null);
      setTimeout(() => mine === turn.current && open(where), AGAIN_MS);
    }
  };
  useEffect(() => {
    open("end");
    return () => (turn.current += 1);
  }, [path, wanted, wanted === "all" ? null : newest]);
  // Loads what is before, and says how many lines that are, or what is after.
  const more = async (isEarlier, onAdded) => {
    const mine = turn.current;
    const { begin, end } = model.current;
    const from = isEarlier ? Math.max(bounds.current.begin, begin - MORE_BYTES) : end;
    try {
      const limit = isEarlier ? begin - from : Math.min(MORE_BYTES, (bounds.current.end ?? Infinity) - from);
      const piece = await read(from, limit, { whole_lines: isEarlier && from > bounds.current.begin });
      if (mine !== turn.current) return;
      if (isEarlier) onAdded(model.current.prepend(piece.text, piece.offset));
      else if (piece.next >= (bounds.current.end ?? state.size)) await open("end");
      else model.current.append(piece.text, piece.offset, piece.next);
      tell({ error: null });
    } catch (error) {
      tell({ error });
    }
  };
  const lookAtTimes = async () => {
    const about = await get(`${path}/log/times`, { conn_id: connId, offset: model.current.begin ?? 0 }).catch(() => null);
    if (about) tell({ attempts: about.attempts, times: about.times });
  };
  // Where the lines are that have a text, in all of it; null if nobody wants to know any more.
  const seek = async (text, isWanted) => {
    const found = [];
    let at = bounds.current.begin;
    const end = bounds.current.end ?? state.size;
    while (at !== null && at < end && found.length < MAX_FOUND) {
      const answer = await get(`${path}/log/search`, { conn_id: connId, text, offset: at, end });
      if (!isWanted()) return null;
      found.push(...answer.offsets);
      at = answer.next_offset;
    }
    return found;
  };
  return { model: model.current, bounds: bounds.current, ...state, open, more, seek, lookAtTimes };
}

// How many characters a row has, and how wide one is.
function useColumns(box, gutter) {
  const [measure, setMeasure] = useState({ columns: 80, height: 400 });
  useLayoutEffect(() => {
    const look = () => {
      const probe = document.createElement("span");
      probe.className = "probe";
      probe.textContent = "0".repeat(100);
      box.current.append(probe);
      const wide = probe.getBoundingClientRect().width / 100 || 7.5;
      probe.remove();
      const style = getComputedStyle(box.current);
      const room = box.current.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight) - gutter * wide;
      setMeasure({ columns: Math.max(10, Math.floor(room / wide + 0.01)), height: box.current.clientHeight });
    };
    const observer = new ResizeObserver(look);
    observer.observe(box.current);
    look();
    return () => observer.disconnect();
  }, [gutter]);
  return measure;
}

const NONE = [];

// Where a text occurs in the lines, found step by step.
function useSearch(model, version, text) {
  const [found, setFound] = useState({ text: "", matches: NONE });
  useEffect(() => {
    if (!text) return undefined;
    let isOver = false;
    let [at, all] = [0, []];
    const step = () => {
      if (isOver) return;
      const until = performance.now() + SEARCH_MS;
      while (at < model.lines.length && all.length < MAX_FOUND && performance.now() < until) {
        const to = Math.min(at + 200, model.lines.length);
        all = all.concat(findIn(model.lines, text, at, to));
        at = to;
      }
      if (at >= model.lines.length || all.length >= MAX_FOUND) return setFound({ text, matches: all });
      setTimeout(step);
    };
    const timer = setTimeout(step, 60);
    return () => {
      isOver = true;
      clearTimeout(timer);
    };
  }, [model, version, text]);
  return text && found.text === text ? found.matches : NONE;
}

// A part of a line as elements: its colours, and what was searched for.
function pieces(line, from, to, marks, current, length) {
  const found = [];
  let at = 0;
  for (const [text, style] of segmentsOf(line.text, line.style)) {
    const [begin, end] = [Math.max(at, from), Math.min(at + text.length, to)];
    let position = begin;
    while (position < end) {
      const mark = marks.find((one) => one + length > position);
      const isMarked = mark !== undefined && mark <= position;
      const next = Math.min(end, mark === undefined ? end : isMarked ? mark + length : mark);
      found.push(element(text.slice(position - at, next - at), style, isMarked ? (mark === current ? "hit current" : "hit") : ""));
      position = next;
    }
    at += text.length;
    if (at >= to) break;
  }
  return found;
}

function element(text, style, mark) {
  const { classes, style: looks } = looksOf(style);
  if (mark) return html`<mark class="${mark} ${classes}" style=${looks}>${text}</mark>`;
  return classes || Object.keys(looks).length ? html`<span class=${classes} style=${looks}>${text}</span>` : text;
}

function About({ task, attempt, isLatest }) {
  if (!attempt) return null;
  const usage = attempt.usage ?? (isLatest ? task.usage : null);
  const isOver = attempt.ended_at !== null;
  const facts = [
    `Attempt ${attempt.number}`,
    attempt.started_at && html`from <time datetime=${attempt.started_at}>${time(attempt.started_at)}</time>`,
    isOver && html`to <time datetime=${attempt.ended_at}>${time(attempt.ended_at)}</time>`,
    isOver && attempt.started_at && `${duration((new Date(attempt.ended_at) - new Date(attempt.started_at)) / 1000)}`,
    attempt.exit_code !== null ? `exit code ${attempt.exit_code}` : wordOf(outcomeOf(attempt.status, isLatest ? task.reason : null)),
    usage?.cpu_seconds !== undefined && usage?.cpu_seconds !== null && `CPU ${duration(usage.cpu_seconds)}`,
    usage?.max_memory && `memory ${bytes(usage.max_memory)}`,
  ];
  return html`<p class="about quiet">${facts.filter(Boolean).map((fact, index) => html`${index ? " · " : ""}<span>${fact}</span>`)}</p>`;
}

// How often it was found, and the way to the others.
function Matches({ at, count, isPart, everywhere, onGo, onAll, onGoTo }) {
  const isLooking = everywhere !== null && everywhere.offsets === null;
  const all = everywhere?.offsets ?? null;
  const [number, total, go] = all ? [everywhere.at, all.length, onGoTo] : [at, count, onGo];
  const most = total >= MAX_FOUND ? " or more" : "";
  const where = all ? " lines of the whole log" : isPart ? " in what is loaded" : "";
  return html`<span class="quiet" aria-live="polite">${isLooking ? "searching …" : total ? `${number + 1} of ${total}${most}${where}` : `not found${where.replace(" lines of", " in")}`}</span>
    <button type="button" class="small" aria-label="Previous match" disabled=${!total} onClick=${() => go(number - 1)}>↑</button>
    <button type="button" class="small" aria-label="Next match" disabled=${!total} onClick=${() => go(number + 1)}>↓</button>
    ${isPart && !everywhere ? html`<button type="button" class="small" onClick=${onAll}>Search all of it</button>` : null}`;
}

// The log of one task. `follow(offset, hear)`: the page's stream of events goes on with the log from there.
export function Log({ job, task, connId, follow, isLive }) {
  const path = taskPath(job, task.id);
  const box = useRef(null);
  const field = useRef(null);
  const [choices, choose] = useChoices();
  const [wanted, setWanted] = useState("last");
  const newest = task.attempts.length ? task.attempts[task.attempts.length - 1].number : 0;
  const { model, bounds, version, isLoaded, error, attempts, times, number, size, open, more, seek, lookAtTimes } = useWindow(path, connId, wanted, newest, follow);
  const [isFollowing, setFollowing] = useState(true);
  const follows = useRef(true);
  const [top, setTop] = useState(0);
  const [text, setText] = useState("");
  const [current, setCurrent] = useState(-1);
  const [isCopied, setCopied] = useState(false);
  const [isBusy, setBusy] = useState(false);
  const [everywhere, setEverywhere] = useState(null); // { text, offsets, at } of a search in all; no offsets: it is looking
  const [target, setTarget] = useState(null); // { offset } of a line that is to be in sight
  const added = useRef(0); // lines that have come before those that are in sight, which stay where they are

  const lines = model.lines;
  const base = number; // of the line that was loaded first
  const digits = base === null ? 0 : `${base + (lines[lines.length - 1]?.number ?? 0)}`.length;
  const hasNumbers = choices.numbers && base !== null;
  const gutter = (hasNumbers ? Math.max(digits, 3) + 2 : 0) + (choices.times ? 10 : 0);
  const { columns, height } = useColumns(box, gutter);
  const wide = choices.wrap ? columns : 0;
  const rows = useMemo(() => rowsOf(lines, wide), [lines, version, wide]);
  const total = rows[lines.length];
  const found = useSearch(model, version, text);
  const at = Math.min(current < 0 ? found.length - 1 : current, found.length - 1);

  const isEmpty = !lines.length;
  const toEnd = () => {
    if (follows.current && box.current) box.current.scrollTop = box.current.scrollHeight;
  };
  const setFollow = (value) => {
    follows.current = value;
    setFollowing(value);
    toEnd();
  };
  const stay = () => {
    follows.current = false;
    setFollowing(false);
  };
  useLayoutEffect(() => {
    if (added.current) box.current.scrollTop += rows[added.current] * ROW;
    else toEnd();
    added.current = 0;
  }, [version, total, isEmpty, height]);
  useEffect(() => {
    if (!choices.times || !isLoaded) return undefined;
    const timer = setTimeout(lookAtTimes, times.length ? TIMES_MS : 0);
    return () => clearTimeout(timer);
  }, [choices.times, isLoaded, model.end, model.begin]);
  useEffect(() => {
    setFollow(true);
    setEverywhere(null);
    setTarget(null);
  }, [wanted]);
  const scrolled = () => {
    const { scrollTop, scrollHeight, clientHeight } = box.current;
    setTop(scrollTop);
    const isAtEnd = scrollHeight - scrollTop - clientHeight < NEAR_END;
    if (isAtEnd !== follows.current) {
      follows.current = isAtEnd;
      setFollowing(isAtEnd);
    }
  };
  const scrollTo = (row) => {
    box.current.scrollTop = Math.max(0, row * ROW - box.current.clientHeight / 2);
    box.current.scrollIntoView({ block: "nearest" });
  };
  const rowOf = ([line, position]) => rows[line] + Math.floor(position / (wide || PIECE));
  const go = (next) => {
    if (!found.length) return;
    const index = (next + found.length) % found.length;
    setCurrent(index);
    stay();
    scrollTo(rowOf(found[index]));
  };
  // The same in the whole log, of which the page has a part.
  const seekAll = async () => {
    setEverywhere({ text, offsets: null, at: 0 });
    const offsets = await seek(text, () => field.current?.value === text).catch(() => []);
    if (offsets !== null && field.current?.value === text) goTo({ text, offsets }, offsets.length - 1);
  };
  const goTo = async (seen, at) => {
    setEverywhere({ ...seen, at });
    if (!seen.offsets.length) return;
    stay();
    const offset = seen.offsets[at];
    const isThere = () => model.begin !== null && offset >= model.begin && offset < (model.end ?? Infinity);
    if (!isThere()) await open(offset);
    setTarget({ offset });
  };
  const reached = useRef({ target: null, isCurrent: false });
  useLayoutEffect(() => {
    const line = target === null ? -1 : lines.findIndex((one) => one.offset !== null && one.offset >= target.offset);
    if (line < 0) return;
    if (reached.current.target !== target) {
      reached.current = { target, isCurrent: false };
      scrollTo(rows[line]);
    }
    const match = reached.current.isCurrent ? -1 : found.findIndex(([one]) => one >= line);
    if (match < 0) return;
    reached.current.isCurrent = true;
    setCurrent(match);
  }, [target, lines, found]);
  const sought = useRef("");
  useEffect(() => {
    if (!found.length || sought.current === text || target !== null) return;
    sought.current = text;
    go(found.length - 1); // the last one, as a log is read from its end
  }, [found]);
  const search = (value) => {
    sought.current = "";
    setEverywhere(null);
    setTarget(null);
    setText(value);
    setCurrent(-1);
  };
  const earlier = async () => {
    setBusy(true);
    stay();
    await more(true, (number) => (added.current = number));
    setBusy(false);
  };
  const toStart = async () => {
    stay();
    await open("begin");
    box.current.scrollTop = 0;
  };
  const toLast = async () => {
    if (model.dropped) await open("end");
    setFollow(true);
  };

  // The rows in sight. A line of many characters has several elements, each of whole rows.
  const isSmall = total <= MAX_AT_ONCE && model.length < MAX_AT_ONCE * 200;
  const seen = follows.current ? Math.max(0, total * ROW - height) : top;
  const [firstRow, lastRow] = isSmall ? [0, total] : [Math.max(0, Math.floor(seen / ROW) - OVERSCAN), Math.min(total, Math.ceil((seen + height) / ROW) + OVERSCAN)];
  const chunk = wide ? Math.max(1, Math.floor(PIECE / wide)) * wide : PIECE;
  const rowsOfChunk = wide ? chunk / wide : 1;
  const shown = [];
  let begin = firstRow;
  if (lines.length) {
    const seams = wanted === "all" && attempts.length > 1 ? attempts.slice(1) : [];
    const one = lineAt(rows, firstRow);
    for (let index = one; index < lines.length && rows[index] < lastRow; index += 1) {
      const line = lines[index];
      const marks = text ? marksOf(found, index) : [];
      const chunks = Math.max(1, Math.ceil(line.plain.length / chunk));
      let from = Math.max(0, Math.floor((firstRow - rows[index]) / rowsOfChunk));
      from = Math.min(from, chunks - 1);
      if (index === one) begin = rows[index] + from * rowsOfChunk;
      for (let part = from; part < chunks && rows[index] + part * rowsOfChunk < lastRow; part += 1) {
        const seam = part === 0 ? seams.find((attempt) => line.offset >= attempt.begin && (lines[index - 1]?.offset ?? -1) < attempt.begin) : undefined;
        const when = choices.times ? timeOf(times, line.offset) : null;
        shown.push(html`<div key=${`${line.number} ${part}`} class="row ${line.note ? "note" : ""} ${seam ? "seam" : ""}"
            data-number=${hasNumbers && !line.note ? (part ? "" : base + line.number) : undefined}
            data-time=${choices.times ? (part || when === null ? "" : clock(1000 * when)) : undefined}>${seam ? html`<span class="seam-name" aria-label="Attempt ${seam.number} begins">attempt ${seam.number}</span>` : null}<span class="text">${line.plain ? pieces(line, part * chunk, (part + 1) * chunk, marks, found[at]?.[0] === index ? found[at][1] : -1, text.length) : "\n"}</span></div>`);
      }
    }
  }

  const canLoad = model.begin !== null && model.begin > bounds.begin;
  const chosen = wanted === "all" ? null : (task.attempts.find((attempt) => attempt.number === wanted) ?? task.attempts[task.attempts.length - 1]);
  const isLatest = chosen === task.attempts[task.attempts.length - 1];
  const ofAttempt = wanted === "all" || attempts.length < 2 ? undefined : wanted === "last" ? attempts[attempts.length - 1].number : wanted;
  const isPart = canLoad || model.dropped;
  return html`<section class="log ${total > LONG ? "long" : ""}" aria-label="Log of ${task.id}">
    <div class="head"><h3>Log</h3>
      ${attempts.length > 1 ? html`<label>Attempt <select aria-label="Attempt" value=${`${wanted}`} onChange=${({ target }) => setWanted(/^\d+$/.test(target.value) ? Number(target.value) : target.value)}>
        <option value="last">${attempts[attempts.length - 1].number} (last)</option>
        ${attempts.slice(0, -1).reverse().map((attempt) => html`<option value=${`${attempt.number}`}>${attempt.number}</option>`)}
        <option value="all">all</option></select></label>` : null}
      ${isLive ? html`<label title="f"><input type="checkbox" class="follow" checked=${isFollowing} onChange=${(event) => (event.target.checked ? toLast() : setFollow(false))} /> Follow</label>` : null}
      <button type="button" class="small" onClick=${async () => setCopied(await copy(model.text()))} onBlur=${() => setCopied(false)}>${isCopied ? "Copied" : "Copy"}</button>
      <a href=${apiAddress(`${path}/log`, { conn_id: connId, attempt: ofAttempt })} download="${task.id}${ofAttempt ? `.${ofAttempt}` : ""}.log">Download</a>
    </div>
    <${About} task=${task} attempt=${chosen} isLatest=${isLatest} />
    <form class="log-tools" role="search" onSubmit=${(event) => event.preventDefault()}>
      <input ref=${field} type="search" class="find" aria-label="Search the log" placeholder="Search (/)" value=${text} onInput=${(event) => search(event.target.value)}
        onKeyDown=${(event) => event.key === "Enter" && (event.preventDefault(), go(at + (event.shiftKey ? -1 : 1)))} />
      ${text ? html`<${Matches} at=${at} count=${found.length} isPart=${isPart} everywhere=${everywhere} onGo=${go} onAll=${seekAll} onGoTo=${(next) => goTo(everywhere, (next + everywhere.offsets.length) % everywhere.offsets.length)} />` : null}
      ${[["wrap", "Wrap"], ["numbers", "Numbers"], ["times", "Times"]].map(([key, word]) => html`<label><input type="checkbox" checked=${choices[key]} onChange=${(event) => choose({ [key]: event.target.checked })} /> ${word}</label>`)}
    </form>
    ${error ? html`<p class="problem" role="alert">The log cannot be read now: ${error.message}</p>` : null}
    ${canLoad ? html`<p class="more"><button type="button" class="small" disabled=${isBusy} onClick=${earlier}>Load earlier</button> <button type="button" class="small" onClick=${toStart}>Go to the beginning</button>
      <span class="quiet">${bytes(model.begin - bounds.begin)} before this</span></p>` : null}
    ${isEmpty && !error ? html`<p class="quiet">${!isLoaded ? "Loading …" : isLive ? "Nothing printed yet." : "Nothing was printed."}</p>` : null}
    <div ref=${box} class="lines ${isEmpty ? "none" : ""} ${choices.wrap ? "wrap" : ""}" tabindex="0" role="log" aria-live="off" aria-label="What ${task.id} has printed" onScroll=${scrolled}
        style=${{ "--gutter": `${gutter}ch`, "--digits": `${hasNumbers ? Math.max(digits, 3) + 2 : 0}ch` }}>
      <div class="room" style=${{ height: `${total * ROW}px` }}><div class="slice" style=${{ transform: `translateY(${begin * ROW}px)` }}>${shown}</div></div>
    </div>
    ${model.dropped ? html`<p class="more"><button type="button" class="small" disabled=${isBusy} onClick=${() => more(false)}>Load later</button> <button type="button" class="small" onClick=${toLast}>Go to the end</button> <span class="quiet">${bytes(Math.max(0, (bounds.end ?? size) - model.end))} after this</span></p>` : null}
  </section>`;
}

// Where a line has what was searched for; `found` is in the order of lines.
function marksOf(found, index) {
  let [from, to] = [0, found.length];
  while (from < to) {
    const middle = (from + to) >> 1;
    if (found[middle][0] < index) from = middle + 1;
    else to = middle;
  }
  const marks = [];
  for (; from < found.length && found[from][0] === index; from += 1) marks.push(found[from][1]);
  return marks;
}
