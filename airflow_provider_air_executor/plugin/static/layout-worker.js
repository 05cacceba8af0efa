// Groups and lays out a graph beside the page, which stays responsive meanwhile.

import { linksOf, nameOf, opened, unitsOf } from "./groups.js";
import { layOut } from "./layout.js";

const HEIGHT = 34; // of a task
const GROUP_HEIGHT = 52; // it has a second line
const CHARACTER = 7.8; // pixels, about
const MAX_CHARACTERS = 26;
const BESIDE_TEXT = 40;
const GROUP_WIDTH = 150;

let tasks = { ids: [], dependencies: [] };
let units = [];

const short = (text) => (text.length > MAX_CHARACTERS ? `${text.slice(0, MAX_CHARACTERS - 1)}…` : text);

function draw(open, chosen) {
  const { shown, groups } = opened(units, new Set(open), chosen);
  const names = shown.map((unit) => nameOf(unit, tasks.ids));
  const sizes = shown.map((unit, index) => {
    const width = short(names[index]).length * CHARACTER + BESIDE_TEXT;
    return unit.members ? [Math.max(width, GROUP_WIDTH), GROUP_HEIGHT] : [width, HEIGHT];
  });
  const { boxes, lines, ...size } = layOut(sizes, linksOf(shown, tasks.dependencies));
  return {
    ...size,
    lines,
    boxes: boxes.map((box, index) => ({
      ...box,
      key: shown[index].key,
      name: names[index],
      label: short(names[index]),
      tasks: shown[index].tasks,
      isGroup: shown[index].members !== null,
    })),
    groups: groups.map((unit) => ({ key: unit.key, name: nameOf(unit, tasks.ids), count: unit.tasks.length })),
  };
}

self.addEventListener("message", ({ data }) => {
  if (data.tasks) {
    tasks = data.tasks;
    units = unitsOf(tasks.ids, tasks.dependencies);
  }
  self.postMessage({ number: data.number, drawn: draw(data.open, data.chosen) });
});
