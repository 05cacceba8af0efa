// What a task prints, as it comes.

import { html, useEffect, useRef, useState } from "./preact.js";
import { apiAddress, taskPath } from "./api.js";

export const FIRST_BYTES = 65536; // of a long log, its end
const MAX_CHARACTERS = 2_000_000; // that are kept on the page
const MAX_LINE = 100_000; // of a line that is not shown anew with each piece that comes

// Colours and other commands to a terminal.
const COMMANDS = /\u001b\[[0-?]*[ -/]*[@-~]|\u001b\][^\u0007\u001b]*(?:\u0007|\u001b\\)|[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f]/g;

// A carriage return writes over its line, as progress bars do.
const lastState = (line) => line.slice(line.replace(/\r+$/, "").lastIndexOf("\r") + 1);
const printable = (text) => text.split("\n").map(lastState).join("\n").replace(/\r/g, "").replace(COMMANDS, "");

// The log of one task; `listen` is given a function that gets each piece of it.
export function Log({ job, task, connId, listen, isLive }) {
  const box = useRef(null);
  const follows = useRef(true);
  const [isEmpty, setEmpty] = useState(true);
  const [leftOut, setLeftOut] = useState(null); // bytes at the beginning
  const [follow, setFollow] = useState(true);
  const toEnd = () => {
    if (follows.current && box.current) box.current.scrollTop = box.current.scrollHeight;
  };
  const set = (value) => {
    follows.current = value;
    setFollow(value);
    toEnd();
  };
  useEffect(toEnd, [isEmpty]); // before, the box has no height
  useEffect(() => {
    let length = 0;
    let told = 0; // up to which byte
    let open = ""; // the line that has not ended
    let node = null; // which shows it
    const append = (text) => {
      node = document.createTextNode(printable(text));
      box.current.append(node);
      length += node.length;
    };
    return listen(({ text, offset, next_offset: next }) => {
      if (box.current === null) return; // it is going
      setLeftOut((before) => before ?? offset);
      const isCut = length === 0 && offset > 0; // what it begins with is half a line
      const note = offset < told ? `${open && "\n"}(The log has been truncated; it begins anew.)\n` : "";
      told = next;
      length -= node?.length ?? 0;
      node?.remove();
      const all = open + note + (isCut ? text.slice(text.indexOf("\n") + 1) : text);
      const end = all.lastIndexOf("\n") + 1;
      append(all.slice(0, end));
      open = lastState(all.slice(end));
      append(open);
      if (open.length > MAX_LINE) [open, node] = ["", null];
      while (length > MAX_CHARACTERS && box.current.firstChild !== node) {
        length -= box.current.firstChild.length;
        box.current.firstChild.remove();
      }
      setEmpty(false);
      toEnd();
    });
  }, [job, task]);
  const scrolled = () => {
    const { scrollTop, scrollHeight, clientHeight } = box.current;
    const isAtEnd = scrollHeight - scrollTop - clientHeight < 24;
    if (isAtEnd !== follows.current) {
      follows.current = isAtEnd;
      setFollow(isAtEnd);
    }
  };
  return html`<section class="log" aria-label="Log of ${task}">
    <div class="head"><h3>Log</h3>
      ${isLive ? html`<label><input type="checkbox" checked=${follow} onChange=${(event) => set(event.target.checked)} /> Follow</label>` : null}
      <a href=${apiAddress(`${taskPath(job, task)}/log`, { conn_id: connId })} download="${task}.log">Download</a>
    </div>
    ${leftOut ? html`<p class="quiet">The first ${Math.ceil(leftOut / 1024)} KiB are not shown here; the download has all.</p>` : null}
    ${isEmpty ? html`<p class="quiet">${isLive ? "Nothing printed yet." : "Nothing was printed."}</p>` : null}
    <pre ref=${box} class=${isEmpty ? "none" : ""} tabindex="0" aria-label="What ${task} has printed" onScroll=${scrolled}></pre>
  </section>`;
}
