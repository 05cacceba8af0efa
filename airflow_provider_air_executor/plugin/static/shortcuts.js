// Keys that do something anywhere on a page, and what shows them.

import { html, useLayoutEffect, useRef } from "./preact.js";

const isTyping = (target) => target.isContentEditable || ["INPUT", "TEXTAREA", "SELECT"].includes(target.tagName) && !["checkbox", "radio", "button"].includes(target.type);

// `keys` has [key, what it does in words, what it calls]; without a call the browser does it anyway.
export function Keys({ keys }) {
  const dialog = useRef(null);
  const known = useRef(keys);
  known.current = keys;
  useLayoutEffect(() => { // not a moment after the page is seen
    const pressed = (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
      if (isTyping(event.target)) {
        if (event.key === "Escape") event.target.blur();
        return;
      }
      if (document.querySelector("dialog[open]")) return;
      const found = event.key === "?" ? ["?", "", () => dialog.current.showModal()] : known.current.find(([key]) => key === event.key);
      if (!found?.[2]) return;
      event.preventDefault();
      found[2]();
    };
    document.addEventListener("keydown", pressed);
    return () => document.removeEventListener("keydown", pressed);
  }, []);
  return html`<button type="button" class="plain keys wide" title="Keyboard (?)" onClick=${() => dialog.current.showModal()}>Keyboard</button>
    <dialog ref=${dialog} aria-labelledby="keys-heading">
      <h2 id="keys-heading">Keyboard</h2>
      <dl class="keys">${[...keys, ["?", "this list"]].map(([key, words]) => html`<div><dt><kbd>${key}</kbd></dt><dd>${words}</dd></div>`)}</dl>
      <div class="actions"><button type="button" onClick=${() => dialog.current.close()}>Close</button></div>
    </dialog>`;
}
