// The tasks of a job and what they depend on: a drawing to zoom and to move, in which groups of tasks can be opened. A
// worker finds the places (layout-worker.js); this draws the boxes and lines that are in sight.

import { html, useEffect, useLayoutEffect, useMemo, useRef, useState } from "./preact.js";
import { countsOf } from "./groups.js";
import { OUTCOMES, mostUrgent, signPaths, wordOf, wordsOf } from "./outcomes.js";

const MAX_DRAWN = 300; // boxes in sight that are drawn with their names; of more, only their places are
const READABLE = 0.6; // the least zoom at which everything is shown at first
const ZOOMS = [0.02, 2.5];
const STEP = 1.3; // of a button or key
const PAN = 60; // pixels of a key
const TILE = 400; // the part that is drawn goes by steps of so many pixels of the graph
const HEIGHTS = [110, 384]; // pixels of the drawing at first
const BORDER = 8; // pixels around it
const SLIP = 4; // pixels by which a click may miss
const BESIDE = 400; // pixels by which a line may leave the space between its boxes
const WHOLE = { left: -Infinity, top: -Infinity, right: Infinity, bottom: Infinity };

const clamp = (value, least, most) => Math.min(Math.max(value, least), most);
const middle = (box) => [box.x + box.width / 2, box.y + box.height / 2];

// What the worker has made of the tasks, with these groups open and the chosen task in sight.
function useDrawing(graph, open, chosen) {
  const worker = useRef(null);
  const asked = useRef(0);
  const sent = useRef(null);
  const [drawn, setDrawn] = useState(null);
  const shape = useMemo(() => JSON.stringify([graph.ids, graph.dependencies]), [graph]);
  useEffect(() => {
    worker.current = new Worker(new URL("./layout-worker.js", import.meta.url), { type: "module" });
    worker.current.addEventListener("message", ({ data }) => data.number === asked.current && setDrawn(data.drawn));
    return () => worker.current.terminate();
  }, []);
  useEffect(() => {
    asked.current += 1;
    const tasks = sent.current === shape ? undefined : { ids: graph.ids, dependencies: graph.dependencies };
    sent.current = shape;
    worker.current.postMessage({ number: asked.current, tasks, open: [...open], chosen });
  }, [shape, open, chosen]);
  return drawn;
}

// The size of an element, in pixels.
function useSize(element) {
  const [size, setSize] = useState(null);
  useLayoutEffect(() => {
    const look = () => setSize({ width: element.current.clientWidth, height: element.current.clientHeight });
    const observer = new ResizeObserver(look);
    observer.observe(element.current);
    look();
    return () => observer.disconnect();
  }, []);
  return size;
}

// A view says where the graph's corner is on the screen, and how large it is there.
function fitted(drawn, size) {
  const zoom = clamp(Math.min(size.width / drawn.width, size.height / drawn.height), ZOOMS[0], 1);
  return { zoom, x: (size.width - zoom * drawn.width) / 2, y: (size.height - zoom * drawn.height) / 2 };
}

function first(drawn, size, box) {
  const whole = fitted(drawn, size);
  if (whole.zoom >= READABLE || !box) return whole;
  const zoom = 1;
  const [x, y] = middle(box);
  const place = (length, at, all) => (all <= length ? (length - all) / 2 : clamp(length / 2 - at, length - all, 0));
  return { zoom, x: place(size.width, x * zoom, drawn.width * zoom), y: place(size.height, y * zoom, drawn.height * zoom) };
}

const isInSight = (view, size, box) =>
  view.x + view.zoom * box.x >= 0 && view.x + view.zoom * (box.x + box.width) <= size.width && view.y + view.zoom * box.y >= 0 && view.y + view.zoom * (box.y + box.height) <= size.height;

// The nearest view in which a box is in sight.
function showing(view, size, box) {
  const left = view.x + view.zoom * box.x;
  const top = view.y + view.zoom * box.y;
  const by = (at, length, room) => (at < 8 ? 8 - at : Math.min(0, room - 8 - length - at));
  return {
    ...view,
    x: view.x + by(left, view.zoom * box.width, size.width),
    y: view.y + by(top, view.zoom * box.height, size.height),
  };
}

function zoomed(view, factor, [x, y]) {
  const zoom = clamp(view.zoom * factor, ...ZOOMS);
  return { zoom, x: x - ((x - view.x) * zoom) / view.zoom, y: y - ((y - view.y) * zoom) / view.zoom };
}

// The part of the graph that is in sight, and a little more, so that it does not change with each pixel.
function part(view, size) {
  const from = (offset) => Math.floor((-offset / view.zoom - TILE / 2) / TILE) * TILE;
  const to = (offset, length) => Math.ceil(((length - offset) / view.zoom + TILE / 2) / TILE) * TILE;
  return { left: from(view.x), top: from(view.y), right: to(view.x, size.width), bottom: to(view.y, size.height) };
}

const isWithin = (area, x, y, width, height) =>
  x <= area.right && x + width >= area.left && y <= area.bottom && y + height >= area.top;

const rectangle = ({ x, y, width, height }) => `M${x.toFixed(1)},${y.toFixed(1)}h${width.toFixed(1)}v${height}h${(-width).toFixed(1)}z`;

// All boxes as one path for each way in which tasks stand, for when there are too many to have names.
const Places = ({ boxes, stands }) => {
  const paths = {};
  boxes.forEach((box) => (paths[stands(box)] = (paths[stands(box)] ?? "") + rectangle(box)));
  return OUTCOMES.filter((outcome) => paths[outcome]).map((outcome) => html`<path key=${outcome} class="place ${outcome}" d=${paths[outcome]} />`);
};

function Box({ box, counts, isChosen, isReached }) {
  const outcome = mostUrgent(counts);
  const words = box.isGroup ? `${box.name}, ${box.tasks.length} tasks: ${wordsOf(counts)}` : `${box.name}: ${wordOf(outcome)}`;
  const shown = OUTCOMES.filter((one) => counts[one]);
  return html`<g class="node ${box.isGroup ? "group" : ""} ${outcome}" role="button" tabindex=${isReached ? 0 : -1} data-key=${box.key}
      aria-pressed=${box.isGroup ? undefined : isChosen} aria-expanded=${box.isGroup ? false : undefined} aria-label=${words}
      transform="translate(${box.x.toFixed(1)},${box.y.toFixed(1)})">
    <title>${words}</title>
    ${box.isGroup ? html`<rect class="behind" x="5" y="5" width=${box.width} height=${box.height} rx="6" />` : null}
    <rect width=${box.width} height=${box.height} rx="6" />
    <g transform="translate(10,${box.isGroup ? 10 : box.height / 2 - 6})">${signPaths(outcome)}</g>
    <text x="28" y=${box.isGroup ? 17 : box.height / 2} dominant-baseline="central">${box.label}</text>
    ${box.isGroup ? html`<text class="counts" x="10" y="38" dominant-baseline="central">${box.tasks.length} tasks</text>
      <g transform="translate(${box.width - 10 - 60},35)">${shown.reduce(
        ({ parts, at }, one) => {
          const width = (60 * counts[one]) / box.tasks.length;
          return { parts: [...parts, html`<rect class="share ${one}" x=${at} width=${width} height="6" />`], at: at + width };
        },
        { parts: [], at: 0 },
      ).parts}</g>` : null}
  </g>`;
}

// What is before, after and beside a box, for the arrow keys.
function neighbour(drawn, index, key) {
  const box = drawn.boxes[index];
  const along = { ArrowLeft: ["to", "from"], ArrowRight: ["from", "to"] }[key];
  const nearest = (others) =>
    others.length ? others.reduce((best, other) => (Math.abs(drawn.boxes[other].y - box.y) < Math.abs(drawn.boxes[best].y - box.y) ? other : best)) : null;
  if (along) return nearest(drawn.lines.filter((line) => line[along[0]] === index).map((line) => line[along[1]]));
  const isBeside = (other) => other.x === box.x && (key === "ArrowUp" ? other.y < box.y : other.y > box.y);
  return nearest(drawn.boxes.flatMap((other, at) => (isBeside(other) ? [at] : [])));
}

function Minimap({ drawn, stands, view, size, onMove }) {
  const element = useRef(null);
  const move = (event) => {
    if (event.type === "pointermove" && !event.buttons) return;
    event.stopPropagation();
    const matrix = element.current.getScreenCTM().inverse();
    const { x, y } = new DOMPoint(event.clientX, event.clientY).matrixTransform(matrix);
    onMove([x, y]);
  };
  const places = useMemo(() => html`<${Places} boxes=${drawn.boxes} stands=${stands} />`, [drawn, stands]);
  return html`<svg ref=${element} class="minimap" viewBox="0 0 ${drawn.width} ${drawn.height}" aria-hidden="true" onPointerDown=${move} onPointerMove=${move}>
    ${places}
    <rect class="sight" x=${-view.x / view.zoom} y=${-view.y / view.zoom} width=${size.width / view.zoom} height=${size.height / view.zoom} />
  </svg>`;
}

// `graph`: the ids of tasks, and for each the numbers of those that it depends on and how it stands.
export function Graph({ graph, selected, onSelect }) {
  const element = useRef(null);
  const size = useSize(element);
  const [open, setOpen] = useState(() => new Set());
  const [view, setView] = useState(null);
  const [height, setHeight] = useState(null); // that of what was drawn first, until somebody changes it
  const [reached, setReached] = useState(null); // the box that Tab goes to
  const chosen = useMemo(() => graph.ids.indexOf(selected), [graph, selected]);
  const drawn = useDrawing(graph, open, chosen);
  const anchor = useRef(null); // a task whose box stays where it is when others come and go, and where it is
  const drag = useRef(null);
  const toFocus = useRef(null);
  const isTouched = useRef(false); // whether somebody has moved it

  const holding = (task) => drawn?.boxes.findIndex((box) => box.tasks.includes(task)) ?? -1;
  const stands = useMemo(() => {
    const found = new Map();
    drawn?.boxes.forEach((box) => found.set(box, mostUrgent(countsOf(box, graph.outcomes))));
    return (box) => found.get(box) ?? "pending";
  }, [drawn, graph.outcomes]);
  const hold = (box) => (anchor.current = { task: box.tasks[0], x: view.x + view.zoom * box.x, y: view.y + view.zoom * box.y });

  useLayoutEffect(() => {
    if (!drawn || !size?.width) return;
    if (height === null) setHeight(clamp(drawn.height + 2 * BORDER, ...HEIGHTS));
    const box = drawn.boxes[holding(chosen)] ?? drawn.boxes[0];
    if (view === null || !isTouched.current) {
      setView(first(drawn, size, box));
    } else if (anchor.current) {
      const held = drawn.boxes[holding(anchor.current.task)];
      if (held) setView({ ...view, x: anchor.current.x - view.zoom * held.x, y: anchor.current.y - view.zoom * held.y });
      if (toFocus.current) toFocus.current = held?.key;
    } else if (chosen >= 0) setView(showing(view, size, box));
    anchor.current = null;
    // What was opened to show a chosen task stays open.
    if (drawn.groups.some(({ key }) => !open.has(key))) setOpen(new Set([...open, ...drawn.groups.map(({ key }) => key)]));
  }, [drawn, size?.width, size?.height]);
  useLayoutEffect(() => {
    const box = drawn?.boxes[holding(chosen)];
    if (view && size && box && !box.isGroup) setView(isTouched.current ? showing(view, size, box) : first(drawn, size, box));
  }, [chosen]);
  useEffect(() => {
    const wheel = (event) => {
      event.preventDefault();
      const { left, top } = element.current.getBoundingClientRect();
      isTouched.current = true;
      const factor = Math.exp(-clamp(event.deltaY * (event.deltaMode ? 20 : 1), -100, 100) / 300);
      setView((before) => before && zoomed(before, factor, [event.clientX - left, event.clientY - top]));
    };
    element.current.addEventListener("wheel", wheel, { passive: false });
    return () => element.current?.removeEventListener("wheel", wheel);
  }, []);
  useLayoutEffect(() => {
    if (!toFocus.current) return;
    element.current.querySelector(`[data-key="${CSS.escape(toFocus.current)}"]`)?.focus({ preventScroll: true });
    toFocus.current = null;
  });

  const change = (make) => {
    isTouched.current = true;
    setView((before) => before && make(before));
  };
  const zoom = (factor) => change((before) => zoomed(before, factor, [size.width / 2, size.height / 2]));
  const pan = (x, y) => change((before) => ({ ...before, x: before.x + x, y: before.y + y }));
  const center = ([x, y]) => change((before) => ({ ...before, x: size.width / 2 - before.zoom * x, y: size.height / 2 - before.zoom * y }));
  const fit = () => drawn && change(() => fitted(drawn, size));
  const choose = (box) => {
    setReached(box.key);
    if (!box.isGroup) return onSelect(box.name);
    hold(box);
    isTouched.current = true;
    setOpen(new Set([...open, box.key]));
  };
  const boxAt = (event) => {
    const { left, top } = element.current.getBoundingClientRect();
    const [x, y] = [(event.clientX - left - view.x) / view.zoom, (event.clientY - top - view.y) / view.zoom];
    return drawn.boxes.find((box) => isWithin({ left: x, right: x, top: y, bottom: y }, box.x, box.y, box.width, box.height));
  };
  const pressed = (event) => {
    if (event.button || event.target.closest("button, .minimap")) return;
    drag.current ??= { fingers: new Map(), moved: 0 };
    drag.current.fingers.set(event.pointerId, [event.clientX, event.clientY]);
  };
  const moved = (event) => {
    const { fingers } = drag.current ?? {};
    const before = fingers?.get(event.pointerId);
    if (!before) return;
    const [x, y] = [event.clientX - before[0], event.clientY - before[1]];
    drag.current.moved += Math.abs(x) + Math.abs(y);
    if (drag.current.moved <= SLIP) return;
    element.current.setPointerCapture(event.pointerId);
    const other = [...fingers].find(([id]) => id !== event.pointerId)?.[1];
    fingers.set(event.pointerId, [event.clientX, event.clientY]);
    if (!other) return pan(x, y);
    const { left, top } = element.current.getBoundingClientRect();
    const distance = (point) => Math.hypot(point[0] - other[0], point[1] - other[1]) || 1;
    change((was) => zoomed(was, distance([event.clientX, event.clientY]) / distance(before), [other[0] - left, other[1] - top]));
  };
  const released = (event) => {
    if (!drag.current?.fingers.delete(event.pointerId)) return;
    const isClick = drag.current.moved <= SLIP && event.type === "pointerup";
    if (!drag.current.fingers.size) drag.current = null;
    const box = isClick && view && drawn ? boxAt(event) : null;
    if (box) choose(box);
  };
  const typed = (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !drawn || !view) return;
    const index = drawn.boxes.findIndex((box) => box.key === event.target.dataset?.key);
    const arrows = { ArrowLeft: [PAN, 0], ArrowRight: [-PAN, 0], ArrowUp: [0, PAN], ArrowDown: [0, -PAN] };
    const next = index >= 0 && arrows[event.key] && !event.shiftKey ? neighbour(drawn, index, event.key) : null;
    if (next !== null) {
      const box = drawn.boxes[next];
      setReached(box.key);
      change((before) => showing(before, size, box));
      toFocus.current = box.key;
    } else if (index >= 0 && (event.key === "Enter" || event.key === " ")) {
      if (drawn.boxes[index].isGroup) toFocus.current = drawn.boxes[index].key;
      choose(drawn.boxes[index]);
    } else if (arrows[event.key]) pan(...arrows[event.key]);
    else if (event.key === "+" || event.key === "=") zoom(STEP);
    else if (event.key === "-") zoom(1 / STEP);
    else if (event.key === "0") fit();
    else return;
    event.preventDefault();
    event.stopPropagation();
  };

  const focused = (event) => {
    const box = event.target.matches(":focus-visible") && drawn?.boxes.find(({ key }) => key === event.target.dataset.key);
    if (box) change((before) => showing(before, size, box));
  };

  const area = !view || !size || !drawn ? null : drawn.boxes.length > MAX_DRAWN ? part(view, size) : WHOLE;
  // Where Tab goes to is in sight, since a browser scrolls the page to what has the focus.
  const inSight = drawn && view && size ? drawn.boxes.filter((box) => isInSight(view, size, box)) : [];
  const tab = (inSight.find(({ key }) => key === reached) ?? inSight.find((box) => box.tasks.includes(chosen)) ?? inSight[0])?.key;
  const picture = useMemo(() => {
    if (!drawn || !area) return null;
    const boxes = drawn.boxes.filter((box) => isWithin(area, box.x, box.y, box.width, box.height));
    const lines = drawn.lines.filter(({ from, to }) => {
      const [a, b] = [drawn.boxes[from], drawn.boxes[to]];
      const [top, bottom] = [Math.min(a.y, b.y) - BESIDE, Math.max(a.y + a.height, b.y + b.height) + BESIDE];
      return isWithin(area, a.x, top, b.x + b.width - a.x, bottom - top);
    });
    const at = holding(chosen);
    const isNear = ({ from, to }) => at >= 0 && (from === at || to === at);
    const draw = (some) => some.map(({ d }) => d).join("");
    const arrows = (some) => some.map(({ x, y }) => `M${x},${y}l-7,-3.5v7z`).join("");
    const [near, far] = [lines.filter(isNear), lines.filter((line) => !isNear(line))];
    return html`<path class="line" d=${draw(far)} /><path class="arrow" d=${arrows(far)} />
      <path class="line near" d=${draw(near)} /><path class="arrow near" d=${arrows(near)} />
      ${boxes.length > MAX_DRAWN
        ? html`<${Places} boxes=${boxes} stands=${stands} />${at >= 0 ? html`<path class="place chosen" d=${rectangle(drawn.boxes[at])} />` : null}`
        : boxes.map((box) => html`<${Box} key=${box.key} box=${box} counts=${countsOf(box, graph.outcomes)} isChosen=${box.tasks.includes(chosen)} isReached=${box.key === tab} />`)}`;
  }, [drawn, area && Object.values(area).join(), graph.outcomes, chosen, tab]);
  const isWhole = drawn && view && size && view.x >= -1 && view.y >= -1 && view.x + view.zoom * drawn.width <= size.width + 1 && view.y + view.zoom * drawn.height <= size.height + 1;

  return html`<div class="graph">
    <div class="canvas" ref=${element} tabindex="-1" style=${{ height: height === null ? undefined : `${height}px` }} onPointerDown=${pressed} onPointerMove=${moved} onPointerUp=${released} onPointerCancel=${released} onKeyDown=${typed} onFocusIn=${focused}>
      <svg class="drawing" role="group" aria-label="Graph of the tasks">
        ${view ? html`<g transform="translate(${view.x.toFixed(2)},${view.y.toFixed(2)}) scale(${view.zoom.toFixed(4)})">${picture}</g>` : null}
      </svg>
      ${drawn && view && size && !isWhole ? html`<${Minimap} drawn=${drawn} stands=${stands} view=${view} size=${size} onMove=${center} />` : null}
    </div>
    <div class="tools" role="toolbar" aria-label="Graph">
      <button type="button" title="Zoom in (+)" aria-label="Zoom in" onClick=${() => zoom(STEP)}>+</button>
      <button type="button" title="Zoom out (-)" aria-label="Zoom out" onClick=${() => zoom(1 / STEP)}>−</button>
      <button type="button" title="All of it (0)" onClick=${fit}>Fit</button>
      ${chosen >= 0 ? html`<button type="button" title="Where the chosen task is" onClick=${() => center(middle(drawn.boxes[holding(chosen)]))}>Chosen</button>` : null}
      ${drawn?.groups.length ? html`<button type="button" onClick=${() => setOpen(new Set())}>Close groups</button>` : null}
      ${drawn ? html`<span class="quiet">${summary(drawn, graph)}</span>` : html`<span class="quiet">Drawing …</span>`}
    </div>
  </div>`;
}

function summary(drawn, graph) {
  const groups = drawn.boxes.filter((box) => box.isGroup).length;
  if (!groups) return `${graph.ids.length} tasks`;
  return `${graph.ids.length} tasks, of which ${drawn.boxes.filter((box) => box.isGroup).reduce((sum, box) => sum + box.tasks.length, 0)} in ${groups} ${groups === 1 ? "group" : "groups"}; a click opens one`;
}
