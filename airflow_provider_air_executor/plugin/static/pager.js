// The pages of a long list.

import { html } from "./preact.js";

const AROUND = 2; // numbers on each side of the page that is shown

// The numbers of pages that are shown; null: some are left out.
export function pageNumbers(current, count) {
  const near = [1, count, ...Array.from({ length: 2 * AROUND + 1 }, (_, index) => current - AROUND + index)];
  const shown = [...new Set(near)].filter((number) => number >= 1 && number <= count).sort((a, b) => a - b);
  const numbers = [];
  for (const number of shown) {
    const before = numbers[numbers.length - 1] ?? 0;
    if (number === before + 2) numbers.push(number - 1);
    else if (number > before + 1) numbers.push(null);
    numbers.push(number);
  }
  return numbers;
}

// `addressOf` gives the address of the page that begins with an offset, if it has one.
export function Pager({ offset, limit, total, what, onOffset, addressOf }) {
  if (total <= limit && !offset) return html`<p class="pager quiet">${total} ${total === 1 ? what.slice(0, -1) : what}</p>`;
  const count = Math.max(1, Math.ceil(total / limit));
  const current = Math.floor(offset / limit) + 1;
  const last = Math.min(offset + limit, total);
  const step = (number, text, label) => {
    const isHere = number === current || number < 1 || number > count;
    const begin = (number - 1) * limit;
    const marks = { "aria-label": label, "aria-current": number === current && text === number ? "page" : undefined };
    if (!addressOf || isHere) return html`<button type="button" ...${marks} disabled=${isHere} onClick=${() => onOffset(begin)}>${text}</button>`;
    const follow = (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
      event.preventDefault();
      onOffset(begin);
    };
    return html`<a class="step" href=${addressOf(begin)} ...${marks} onClick=${follow}>${text}</a>`;
  };
  return html`<nav class="pager" aria-label="Pages">
    ${step(current - 1, "Previous")}
    ${pageNumbers(current, count).map((number) => (number === null ? html`<span class="quiet">…</span>` : step(number, number, `Page ${number}`)))}
    ${step(current + 1, "Next")}
    <span>${Math.min(offset + 1, total)} to ${last} of ${total} ${what}</span>
  </nav>`;
}
