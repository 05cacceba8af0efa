// A window of a log: the lines that are on the page, of a file that may be much longer and grows meanwhile. It is kept
// outside of the page's elements, which hold the lines in sight only.

import { PLAIN, plainOf, shownOf, styleAfter } from "./ansi.js";

export const MAX_CHARACTERS = 12_000_000; // in a window
export const MAX_LINES = 300_000;
export const PIECE = 4000; // characters of a row; a longer line has several
const MAX_OPEN = 1_000_000; // characters of a line that has no end yet, after which it is taken as one
const TRUNCATED = "(The log has been truncated; it begins anew.)";

const encoder = new TextEncoder();

// A line of a terminal: its text, how it looks at its beginning, and where it is in the file, in bytes.
// `note`: it is ours and not in the file. `number` counts from the first line that was loaded.
function lineOf(raw, style, offset, number) {
  const text = shownOf(raw);
  const plain = plainOf(text);
  return { text, plain, style, offset, number, note: false, width: widthOf(plain) };
}

export class Lines {
  constructor() {
    this.lines = [];
    this.begin = null; // where the first line is in the file; null: nothing is there yet, or it is gone
    this.end = null; // up to where it was read
    this.length = 0; // in characters
    this.open = ""; // the last line, as long as no newline has come
    this.dropped = false; // whether lines at the end were let go of
    this.style = PLAIN; // at the beginning of the last line
    this.version = 0;
  }

  get count() {
    return this.lines.length;
  }

  // Adds what follows in the file.
  append(text, offset, nextOffset) {
    this.version += 1;
    if (this.begin === null && !this.lines.length) this.begin = offset;
    if (this.end !== null && offset < this.end) this.#truncate();
    else if (this.open) this.#pop();
    this.end = nextOffset;
    const all = this.open + text;
    let at = offset - encoder.encode(this.open).length;
    let number = this.lines.length ? this.lines[this.lines.length - 1].number + 1 : 0;
    const parts = all.split("\n");
    const rest = parts.pop();
    for (const raw of parts) {
      this.#push(lineOf(raw, this.style, at, number));
      this.style = styleAfter(this.style, raw);
      at += byteLength(raw) + 1;
      number += 1;
    }
    this.open = rest.slice(rest.replace(/\r+$/, "").lastIndexOf("\r") + 1);
    if (this.open) this.#push(lineOf(this.open, this.style, at, number));
    if (this.open.length > MAX_OPEN) this.open = "";
    this.#trim(true);
  }

  // Adds what is before in the file: whole lines, from `offset` to where the window has begun.
  prepend(text, offset) {
    this.version += 1;
    let style = PLAIN;
    let at = offset;
    const raws = text.split("\n");
    if (raws[raws.length - 1] === "") raws.pop();
    let number = (this.lines[0]?.number ?? 0) - raws.length;
    const before = raws.map((raw) => {
      const line = lineOf(raw, style, at, number);
      style = styleAfter(style, raw);
      at += byteLength(raw) + 1;
      number += 1;
      return line;
    });
    for (const line of before) this.length += line.text.length + 1;
    this.lines = [...before, ...this.lines];
    this.begin = offset;
    this.#trim(false);
    return before.length;
  }

  text() {
    return this.lines.map((line) => line.plain).join("\n");
  }

  #push(line) {
    this.lines.push(line);
    this.length += line.text.length + 1;
  }

  #pop() {
    const line = this.lines.pop();
    this.length -= line.text.length + 1;
  }

  // The file is shorter than what was read of it: what is on the page stays, and it is read from its beginning.
  #truncate() {
    this.open = "";
    this.begin = null;
    this.style = PLAIN;
    this.#push({ ...lineOf(TRUNCATED, PLAIN, null, -1), note: true });
  }

  // Lets go of lines at the end that is not looked at, if there are too many.
  #trim(isGrowing) {
    if (this.length <= MAX_CHARACTERS && this.lines.length <= MAX_LINES) return;
    let [from, to] = [0, this.lines.length];
    while (to - from > 1 && (this.length > 0.9 * MAX_CHARACTERS || to - from > 0.9 * MAX_LINES)) {
      const line = isGrowing ? this.lines[from++] : this.lines[--to];
      this.length -= line.text.length + 1;
    }
    if (isGrowing) this.begin = this.lines[from].offset;
    else [this.dropped, this.open, this.end] = [true, "", this.lines[to].offset];
    this.lines = this.lines.slice(from, to);
  }
}

// The length of a text in the file, about: a character that was not valid there counts as three bytes.
function byteLength(text) {
  let bytes = text.length;
  for (let at = 0; at < text.length; at += 1) {
    const code = text.charCodeAt(at);
    if (code > 0x7f) bytes += code > 0x7ff ? (code >= 0xd800 && code <= 0xdfff ? 1 : 2) : 1;
  }
  return bytes;
}

// The rows that the lines take, of `columns` characters each, or without an end if that is 0: for each line the number of
// the row that it begins with, and at the end how many there are.
export function rowsOf(lines, columns) {
  const rows = new Float64Array(lines.length + 1);
  let row = 0;
  for (let at = 0; at < lines.length; at += 1) {
    rows[at] = row;
    row += rowsOfLine(lines[at], columns);
  }
  rows[lines.length] = row;
  return rows;
}

export const rowsOfLine = (line, columns) => Math.max(1, columns ? Math.ceil(line.width / columns) : Math.ceil(line.plain.length / PIECE));

// In columns of a terminal, in which a tab goes on to the next eighth and characters of East Asia take two.
function widthOf(text) {
  if (!/[\t\u1100-\uffff]/.test(text)) return text.length;
  let width = 0;
  for (const character of text) {
    if (character === "\t") width += 8 - (width % 8);
    else width += /[\u1100-\u115f\u2e80-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe6f\uff00-\uff60\uffe0-\uffe6]|[\u{1f300}-\u{1faff}]/u.test(character) ? 2 : 1;
  }
  return width;
}

// The line that a row belongs to.
export function lineAt(rows, row) {
  let [from, to] = [0, rows.length - 2];
  while (from < to) {
    const middle = (from + to + 1) >> 1;
    if (rows[middle] <= row) from = middle;
    else to = middle - 1;
  }
  return Math.max(0, from);
}

// Where a text occurs: [line, position] of each, in whatever case, of `from` to `to`.
export function findIn(lines, text, from, to) {
  const wanted = text.toLowerCase();
  const found = [];
  for (let at = from; at < to; at += 1) {
    const line = lines[at].plain.toLowerCase();
    for (let position = line.indexOf(wanted); position >= 0; position = line.indexOf(wanted, position + wanted.length)) found.push([at, position]);
  }
  return found;
}

// When the line was there: of the notes [time, offset] the first one that goes beyond its beginning.
export function timeOf(times, offset) {
  if (offset === null || !times.length) return null;
  let [from, to] = [0, times.length];
  while (from < to) {
    const middle = (from + to) >> 1;
    if (times[middle][1] > offset) to = middle;
    else from = middle + 1;
  }
  return from < times.length ? times[from][0] : null;
}
