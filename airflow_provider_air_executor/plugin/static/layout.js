// Where the boxes of a graph are, from left to right: columns by rank, siblings in the order of the list, few crossings.

import { ranksOf } from "./groups.js";

const COLUMN_GAP = 48;
const ROW_GAP = 12;
const MARGIN = 12;
const MAX_BENDS = 6000; // of lines that pass columns, all together; where there were more, lines go straight
const SWEEPS = 6; // to put boxes beside those that they are linked with
const ORDERS = 4; // that are tried to have few crossings
const MAX_LINES_TO_ORDER = 4000;

// `sizes`: [width, height] of each box; `links`: the boxes before and after each, as groups.js has them.
export function layOut(sizes, links) {
  const ranks = columnsOf(links);
  const { cells, lines } = withBends(sizes, links, ranks);
  const columns = Array.from({ length: 1 + cells.reduce((most, cell) => Math.max(most, cell.rank), 0) }, () => []);
  for (const cell of cells) columns[cell.rank].push(cell);
  order(columns);
  place(columns);
  let x = MARGIN;
  for (const column of columns) {
    const width = column.reduce((most, cell) => Math.max(most, cell.width), 0);
    for (const cell of column) [cell.x, cell.column] = [x, width];
    x += width + COLUMN_GAP;
  }
  const top = Math.min(...columns.map((column) => (column.length ? column[0].y - column[0].height / 2 : Infinity)));
  for (const cell of cells) cell.y += MARGIN - top;
  const bottom = cells.reduce((most, cell) => Math.max(most, cell.y + cell.height / 2), 0);
  return {
    width: x - COLUMN_GAP + MARGIN,
    height: bottom + MARGIN,
    boxes: cells.slice(0, sizes.length).map(({ x: left, y, width, height }) => ({ x: left, y: y - height / 2, width, height })),
    lines: lines.map(({ from, to, path }) => ({ from, to, ...curve(path) })),
  };
}

// Ranks, but what depends on nothing is directly before what follows it.
function columnsOf(links) {
  const ranks = ranksOf(links);
  links.before.forEach((set, index) => {
    if (!set.size && links.after[index].size) ranks[index] = Math.min(...[...links.after[index]].map((next) => ranks[next])) - 1;
  });
  return ranks;
}

// The boxes, and a bend in each column that a line passes, so that it does not pass behind boxes.
function withBends(sizes, { after }, ranks) {
  const cells = sizes.map(([width, height], index) => ({ index, rank: ranks[index], width, height, weight: 1, before: [], after: [] }));
  const lines = [];
  let bends = 0;
  after.forEach((set, from) => set.forEach((to) => (bends += ranks[to] - ranks[from] - 1)));
  after.forEach((set, from) => {
    for (const to of set) {
      const path = [cells[from]];
      for (let rank = ranks[from] + 1; bends <= MAX_BENDS && rank < ranks[to]; rank += 1) {
        const bend = { index: cells[to].index, rank, width: 0, height: 4, weight: 4, before: [], after: [] };
        cells.push(bend);
        path.push(bend);
      }
      path.push(cells[to]);
      for (let at = 1; at < path.length; at += 1) {
        path[at - 1].after.push(path[at]);
        path[at].before.push(path[at - 1]);
      }
      lines.push({ from, to, path });
    }
  });
  return { cells, lines };
}

const number = (column) => column.forEach((cell, at) => (cell.at = at));

function sortBy(column, side) {
  for (const cell of column) {
    const others = cell[side];
    cell.wish = others.length ? others.reduce((sum, other) => sum + other.at, 0) / others.length : cell.at;
  }
  column.sort((a, b) => a.wish - b.wish || a.index - b.index);
  number(column);
}

// Boxes below each other are in the order of those before them, and siblings in the order of the list; another order is
// taken only if fewer lines cross.
function order(columns) {
  for (const column of columns) {
    column.sort((a, b) => a.index - b.index);
    number(column);
  }
  for (const column of columns.slice(1)) sortBy(column, "before");
  const count = columns.reduce((sum, column) => sum + column.reduce((all, cell) => all + cell.after.length, 0), 0);
  let least = count > MAX_LINES_TO_ORDER ? 0 : crossings(columns);
  let best = columns.map((column) => [...column]);
  for (let tries = 0; tries < ORDERS && least > 0; tries += 1) {
    if (tries % 2) for (const column of columns.slice(1)) sortBy(column, "before");
    else for (const column of columns.slice(0, -1).reverse()) sortBy(column, "after");
    const found = crossings(columns);
    if (found < least) [least, best] = [found, columns.map((column) => [...column])];
  }
  columns.forEach((column, at) => {
    column.splice(0, column.length, ...best[at]);
    number(column);
  });
}

function crossings(columns) {
  let total = 0;
  for (const column of columns.slice(0, -1)) {
    const ends = column.flatMap((cell) => cell.after.map((other) => other.at).sort((a, b) => a - b));
    const size = 1 + ends.reduce((most, end) => Math.max(most, end), 0);
    const tree = new Int32Array(size + 1);
    ends.forEach((end, before) => {
      let notAbove = 0;
      for (let at = end + 1; at > 0; at -= at & -at) notAbove += tree[at];
      total += before - notAbove;
      for (let at = end + 1; at <= size; at += at & -at) tree[at] += 1;
    });
  }
  return total;
}

// Each box as near as may be to the middle of those that it is linked with.
function place(columns) {
  for (const column of columns) {
    let y = 0;
    for (const cell of column) {
      cell.y = y + cell.height / 2;
      y += cell.height + ROW_GAP;
    }
  }
  for (let sweep = 0; sweep < SWEEPS; sweep += 1) {
    const side = sweep % 2 ? "after" : "before";
    for (const column of sweep % 2 ? [...columns].reverse() : columns) spread(column, side);
  }
}

// The places of a column that are nearest to what its boxes wish, by the sum of squares, and keep them apart in their
// order: neighbours that wish to overlap move as one block.
function spread(column, side) {
  const blocks = [];
  let offset = 0; // of a box, if all lay side by side
  for (const cell of column) {
    const others = cell[side];
    const wish = others.length ? others.reduce((sum, other) => sum + other.y, 0) / others.length : cell.y;
    const weight = others.length ? cell.weight : 0.01;
    offset += cell.height / 2;
    cell.offset = offset;
    offset += cell.height / 2 + ROW_GAP;
    let block = { cells: [cell], weight, sum: weight * (wish - cell.offset) };
    while (blocks.length && blocks[blocks.length - 1].sum / blocks[blocks.length - 1].weight > block.sum / block.weight) {
      const previous = blocks.pop();
      previous.cells.push(...block.cells);
      block = { cells: previous.cells, weight: previous.weight + block.weight, sum: previous.sum + block.sum };
    }
    blocks.push(block);
  }
  for (const block of blocks) for (const cell of block.cells) cell.y = block.sum / block.weight + cell.offset;
}

// A line through its bends, and where its arrow is.
function curve(path) {
  const [start] = path;
  let [x, y] = [start.x + start.width, start.y];
  let d = `M${round(x)},${round(y)}`;
  for (const next of path.slice(1)) {
    const middle = (x + next.x) / 2;
    d += `C${round(middle)},${round(y)} ${round(middle)},${round(next.y)} ${round(next.x)},${round(next.y)}`;
    [x, y] = [next.x, next.y];
    if (next.width === 0) {
      x += next.column;
      d += `H${round(x)}`;
    }
  }
  return { d, x, y };
}

const round = (value) => Math.round(10 * value) / 10;
