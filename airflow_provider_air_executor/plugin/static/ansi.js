// What a program writes to a terminal, as lines of text with colours. Nothing of it ever becomes markup: a line is cut into
// segments, each of which is a text and the names of classes.

const SGR = /\u001b\[([0-9;:]*)m/g;
// Other commands to a terminal, and characters that it does not show.
const COMMANDS = /\u001b\[[0-?]*[ -/]*[@-ln-~]|\u001b\[[<-?][0-?]*[ -/]*m|\u001b\][^\u0007\u001b]*(?:\u0007|\u001b\\)|\u001b[@-Z\\^_=>c]|\u001b[ -/][0-~]|[\u0000-\u0008\u000b\u000c\u000e-\u001a\u001c-\u001f\u007f]/g;
const NAMES = ["black", "red", "green", "yellow", "blue", "magenta", "cyan", "white"];
const WEIGHTS = { 1: "bold", 2: "dim", 3: "italic", 4: "underline", 7: "inverse", 9: "strike" };
const ENDS = { 22: ["bold", "dim"], 23: ["italic"], 24: ["underline"], 27: ["inverse"], 29: ["strike"] };

export const PLAIN = Object.freeze({ fg: null, bg: null, on: Object.freeze([]) });

// One of 256 colours: the first sixteen have names, the others are a cube and greys.
function indexed(number) {
  if (number < 8) return NAMES[number];
  if (number < 16) return `bright-${NAMES[number - 8]}`;
  if (number > 231) return `rgb(${Array(3).fill(8 + 10 * (number - 232)).join(",")})`;
  const level = (value) => (value ? 55 + 40 * value : 0);
  const rest = number - 16;
  return `rgb(${level(Math.floor(rest / 36))},${level(Math.floor(rest / 6) % 6)},${level(rest % 6)})`;
}

const isByte = (value) => Number.isInteger(value) && value >= 0 && value <= 255;

// The colour that follows 38 or 48, and how many numbers it takes.
function extended(codes, at) {
  if (codes[at] === 5 && isByte(codes[at + 1])) return [indexed(codes[at + 1]), 2];
  const rgb = codes.slice(at + 1, at + 4);
  if (codes[at] === 2 && rgb.length === 3 && rgb.every(isByte)) return [`rgb(${rgb.join(",")})`, 4];
  return [null, codes.length];
}

function applied(style, text) {
  const codes = text.split(/[;:]/).map((code) => (code === "" ? 0 : Number(code)));
  let { fg, bg, on } = style;
  for (let at = 0; at < codes.length; at += 1) {
    const code = codes[at];
    if (code === 0) [fg, bg, on] = [null, null, PLAIN.on];
    else if (WEIGHTS[code]) on = [...new Set([...on, WEIGHTS[code]])];
    else if (ENDS[code]) on = on.filter((word) => !ENDS[code].includes(word));
    else if (code >= 30 && code <= 37) fg = NAMES[code - 30];
    else if (code >= 90 && code <= 97) fg = `bright-${NAMES[code - 90]}`;
    else if (code >= 40 && code <= 47) bg = NAMES[code - 40];
    else if (code >= 100 && code <= 107) bg = `bright-${NAMES[code - 100]}`;
    else if (code === 39) fg = null;
    else if (code === 49) bg = null;
    else if (code === 38 || code === 48) {
      const [colour, taken] = extended(codes, at + 1);
      if (code === 38) fg = colour;
      else bg = colour;
      at += taken;
    }
  }
  return fg === null && bg === null && !on.length ? PLAIN : { fg, bg, on };
}

// How text looks after this one.
export function styleAfter(style, text) {
  let now = style;
  if (text.includes("\u001b")) for (const [, codes] of text.matchAll(SGR)) now = applied(now, codes);
  return now;
}

// A carriage return writes over its line, as progress bars do.
const lastState = (line) => line.slice(line.replace(/\r+$/, "").lastIndexOf("\r") + 1).replace(/\r/g, "");

// What a terminal shows of a line, with the commands for colours still in it.
export const shownOf = (line) => (/[\u0000-\u0008\u000b-\u001f\u007f]/.test(line) ? lastState(line).replace(COMMANDS, "") : line);

// A line without colours.
export const plainOf = (line) => (line.includes("\u001b") ? line.replace(SGR, "").replaceAll("\u001b", "") : line);

// A line as segments [text, style].
export function segmentsOf(line, style) {
  if (!line.includes("\u001b")) return line ? [[line, style]] : [];
  const found = [];
  let now = style;
  let from = 0;
  const add = (to) => {
    const text = line.slice(from, to).replaceAll("\u001b", "");
    if (text) found.push([text, now]);
  };
  for (const match of line.matchAll(SGR)) {
    add(match.index);
    now = applied(now, match[1]);
    from = match.index + match[0].length;
  }
  add(line.length);
  return found;
}

// The names of classes for a style, and what only a style can say.
export function looksOf({ fg, bg, on }) {
  const classes = on.filter((word) => word !== "inverse");
  const [front, back] = on.includes("inverse") ? [bg ?? "inverse", fg ?? "inverse"] : [fg, bg];
  const style = {};
  if (front?.startsWith("rgb")) style.color = front;
  else if (front) classes.push(`fg-${front}`);
  if (back?.startsWith("rgb")) style.backgroundColor = back;
  else if (back) classes.push(`bg-${back}`);
  return { classes: classes.join(" "), style };
}
