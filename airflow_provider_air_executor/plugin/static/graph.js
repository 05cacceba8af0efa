// The tasks of a job and what they depend on. Dagre finds the places; this draws boxes and lines.

import * as dagre from "./vendor/dagre.js";
import { html, useMemo } from "./preact.js";

const HEIGHT = 34;
const CHARACTER = 7.8; // pixels, about
const MAX_CHARACTERS = 26;
export const MAX_NODES = 120;

const short = (text) => (text.length > MAX_CHARACTERS ? `${text.slice(0, MAX_CHARACTERS - 1)}…` : text);

function layOut(tasks) {
  const graph = new dagre.Graph();
  graph.setGraph({ rankdir: "LR", nodesep: 14, ranksep: 46, marginx: 8, marginy: 8 });
  graph.setDefaultEdgeLabel(() => ({}));
  const ids = new Set(tasks.map((task) => task.id));
  for (const { id } of tasks) graph.setNode(id, { width: short(id).length * CHARACTER + 34, height: HEIGHT });
  for (const task of tasks) for (const id of task.dependencies) if (ids.has(id)) graph.setEdge(id, task.id);
  dagre.layout(graph);
  const { width, height } = graph.graph();
  const nodes = new Map(tasks.map(({ id }) => [id, graph.node(id)]));
  const lines = graph.edges().map((edge) => ({ ...edge, points: graph.edge(edge).points }));
  return { width, height, nodes, lines };
}

function curve(points) {
  const [start, ...rest] = points;
  let path = `M${start.x},${start.y}`;
  for (let index = 0; index < rest.length - 1; index += 1) {
    const here = rest[index];
    const next = rest[index + 1];
    path += ` Q${here.x},${here.y} ${(here.x + next.x) / 2},${(here.y + next.y) / 2}`;
  }
  const last = rest[rest.length - 1];
  return `${path} L${last.x},${last.y}`;
}

export function Graph({ tasks, selected, onSelect }) {
  const shape = JSON.stringify(tasks.map((task) => [task.id, task.dependencies]));
  const { width, height, nodes, lines } = useMemo(() => layOut(tasks), [shape]);
  const choose = (event, id) => {
    if (event.type === "keydown" && event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    onSelect(id);
  };
  return html`<div class="graph" tabindex="-1">
    <svg role="group" aria-label="Graph of the tasks" viewBox="0 0 ${width} ${height}" style=${{ width: `${width}px`, minWidth: `${Math.round(width * 0.55)}px` }}>
      <defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto"><path class="arrow" d="M0,0 L8,4 L0,8 z" /></marker></defs>
      ${lines.map(({ v, w, points }) => html`<path key=${`${v}/${w}`} class="line ${selected === v || selected === w ? "near" : ""}" d=${curve(points)} marker-end="url(#arrow)" />`)}
      ${tasks.map(({ id, status }) => {
        const { x, y, width: wide } = nodes.get(id);
        return html`<g key=${id} class="node ${status}" role="button" tabindex="0" aria-pressed=${selected === id} aria-label="${id}: ${status}"
            transform="translate(${x - wide / 2},${y - HEIGHT / 2})" onClick=${(event) => choose(event, id)} onKeyDown=${(event) => choose(event, id)}>
          <title>${id}: ${status}</title>
          <rect width=${wide} height=${HEIGHT} rx="6" />
          <circle cx="16" cy=${HEIGHT / 2} r="5" />
          <text x="28" y=${HEIGHT / 2} dominant-baseline="central">${short(id)}</text>
        </g>`;
      })}
    </svg>
  </div>`;
}
