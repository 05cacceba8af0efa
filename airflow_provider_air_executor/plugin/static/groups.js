// What a large graph shows instead of its tasks: groups of them, which open when somebody chooses them.
//
// A unit is a task or a group of units. No step makes a cycle: tasks that depend on the same ones and are followed by the
// same ones, links of a chain, and tasks of the same rank may be taken together.

export const MAX_UNITS = 200; // shown before somebody opens a group
const MAX_MEMBERS = 75; // of a group; of more, there are groups of them in it
const PART = 50; // how many these have, or more if there are very many
const RANDOM = 2654435761;

const unitOf = (task) => ({ key: `task ${task}`, first: task, tasks: [task], members: null, kind: "task" });

function groupOf(kind, members) {
  const tasks = members.flatMap((unit) => unit.tasks);
  const first = tasks.reduce((least, task) => Math.min(least, task), Infinity);
  return { key: `${kind} ${first} ${tasks.length}`, first, tasks, members: split(kind, members), kind };
}

// A group of very many is a group of groups, so that a click does not show them all.
function split(kind, members) {
  if (members.length <= MAX_MEMBERS) return members;
  const size = Math.max(PART, Math.ceil(members.length / MAX_MEMBERS));
  const parts = [];
  for (let at = 0; at < members.length; at += size) parts.push(groupOf(`${kind} part`, members.slice(at, at + size)));
  return parts;
}

// Which units depend on which: for each unit, the units before and after it.
export function linksOf(units, dependencies) {
  const owner = new Int32Array(dependencies.length).fill(-1);
  units.forEach((unit, index) => unit.tasks.forEach((task) => (owner[task] = index)));
  const before = units.map(() => new Set());
  const after = units.map(() => new Set());
  dependencies.forEach((list, task) => {
    const to = owner[task];
    for (const dependency of list) {
      const from = owner[dependency];
      if (from === to || from < 0 || to < 0) continue;
      before[to].add(from);
      after[from].add(to);
    }
  });
  return { before, after };
}

// How far each unit is from one that depends on nothing, along the longest way.
export function ranksOf({ before, after }) {
  const ranks = new Int32Array(before.length);
  const missing = before.map((set) => set.size);
  const ready = [];
  missing.forEach((number, index) => number || ready.push(index));
  for (let at = 0; at < ready.length; at += 1)
    for (const next of after[ready[at]]) {
      ranks[next] = Math.max(ranks[next], ranks[ready[at]] + 1);
      missing[next] -= 1;
      if (!missing[next]) ready.push(next);
    }
  return ranks;
}

// Puts together the units that have the same word, if it is not null; `kind` says why.
function merge(units, words, kind) {
  const found = new Map();
  units.forEach((unit, index) => {
    if (words[index] === null) return;
    if (!found.has(words[index])) found.set(words[index], []);
    found.get(words[index]).push(unit);
  });
  const taken = new Set();
  const groups = [];
  for (const members of found.values()) {
    if (members.length < 2) continue;
    members.forEach((unit) => taken.add(unit));
    groups.push(groupOf(kind, members));
  }
  return inOrder([...units.filter((unit) => !taken.has(unit)), ...groups]);
}

const inOrder = (units) => units.sort((a, b) => a.first - b.first);

// A number for a set of units; two sets have the same one only if they are the same, but for a chance that is nil.
function digest(set) {
  let [one, two] = [0, 0];
  for (const member of set) {
    const mixed = Math.imul(member + 1, RANDOM) ^ (member << 7);
    one = (one + (mixed >>> 0)) % 4294967291;
    two = (two + Math.imul(mixed ^ (mixed >>> 15), 2246822519)) | 0;
  }
  return `${set.size},${one},${two}`;
}

function mergeAlike(units, dependencies) {
  const { before, after } = linksOf(units, dependencies);
  return merge(units, units.map((_, index) => `${digest(before[index])}/${digest(after[index])}`), "alike");
}

function mergeChains(units, dependencies) {
  const { before, after } = linksOf(units, dependencies);
  const only = (set) => (set.size === 1 ? set.values().next().value : -1);
  const next = units.map((_, index) => {
    const following = only(after[index]);
    return following >= 0 && before[following].size === 1 ? following : -1;
  });
  const isInside = new Set(next);
  const taken = new Set();
  const groups = [];
  units.forEach((unit, index) => {
    if (isInside.has(index) || next[index] < 0) return;
    const members = [];
    for (let at = index; at >= 0; at = next[at]) members.push(units[at]);
    members.forEach((member) => taken.add(member));
    groups.push(groupOf("chain", members));
  });
  return inOrder([...units.filter((unit) => !taken.has(unit)), ...groups]);
}

export const stemOf = (id) => id.replace(/[^\p{L}]+$/u, "") || id;

function mergeNamesakes(units, dependencies, ids) {
  const ranks = ranksOf(linksOf(units, dependencies));
  return merge(units, units.map((unit, index) => `${ranks[index]} ${stemOf(ids[unit.first])}`), "named");
}

// What is left is put together by ranks, whatever it is called: in each rank so many that few enough remain.
function mergeRanks(units, dependencies) {
  const ranks = ranksOf(linksOf(units, dependencies));
  const height = 1 + ranks.reduce((most, rank) => Math.max(most, rank), 0);
  const perBand = Math.ceil(height / (MAX_UNITS / 2));
  const size = Math.ceil(units.length / (MAX_UNITS / 2));
  const seen = new Map();
  const words = units.map((_, index) => {
    const band = Math.floor(ranks[index] / perBand);
    if (perBand > 1) return `${band}`;
    seen.set(band, (seen.get(band) ?? 0) + 1);
    return `${band} ${Math.floor((seen.get(band) - 1) / size)}`;
  });
  return merge(units, words, "near");
}

// The units of a graph, the first ones of the list first. `dependencies`: of each task, the numbers of others.
export function unitsOf(ids, dependencies) {
  let units = ids.map((_, task) => unitOf(task));
  let count = Infinity;
  while (units.length > MAX_UNITS && units.length < count) {
    count = units.length;
    for (const step of [mergeAlike, mergeChains]) if (units.length > MAX_UNITS) units = step(units, dependencies);
    if (units.length === count) units = mergeNamesakes(units, dependencies, ids);
  }
  if (units.length > MAX_UNITS) units = mergeRanks(units, dependencies);
  return units.length === 1 ? (units[0].members ?? units) : units; // one box alone says nothing
}

// The units that are shown: those of opened groups instead of the groups. `chosen`: a task that must be among them.
export function opened(units, open, chosen) {
  const shown = [];
  const groups = [];
  const visit = (unit) => {
    if (unit.members && (open.has(unit.key) || unit.tasks.includes(chosen))) {
      groups.push(unit);
      unit.members.forEach(visit);
    } else shown.push(unit);
  };
  units.forEach(visit);
  return { shown: inOrder(shown), groups };
}

// What a group is called: its first and its last task, of which what they have in common is not said twice.
export function nameOf(unit, ids) {
  const [first, last] = [ids[unit.tasks[0]], ids[unit.tasks[unit.tasks.length - 1]]];
  if (!unit.members) return first;
  const stem = first.replace(/\d+$/, "");
  return `${first} … ${last.startsWith(stem) && /^\d+$/.test(last.slice(stem.length)) ? last.slice(stem.length) : last}`;
}

export function countsOf(unit, outcomes) {
  const counts = {};
  for (const task of unit.tasks) counts[outcomes[task]] = (counts[outcomes[task]] ?? 0) + 1;
  return counts;
}
