// The axis of a timeline: from the first start to the last end, without the time in which nothing ran.

const TICKS = 4; // at most, about
const NICE = [1, 2, 5, 10, 15, 20, 30, 60, 120, 300, 600, 900, 1200, 1800, 3600, 7200, 14400, 21600, 43200, 86400];
const MIN_GAP_MS = 5000; // a shorter one is never left out
const SHARE = 0.25; // of the time in which something ran: a gap that is longer is left out
const BREAK = 3; // percent that a break takes
const MAX_BREAKS = 8;

// The parts of the axis, from [start, end] in milliseconds when something ran, in any order.
export function axisOf(busy) {
  if (!busy.length) return null;
  const merged = [];
  for (const [start, end] of [...busy].sort((a, b) => a[0] - b[0])) {
    const last = merged[merged.length - 1];
    if (last && start <= last[1]) last[1] = Math.max(last[1], end);
    else merged.push([start, Math.max(start, end)]);
  }
  const total = merged.reduce((sum, [start, end]) => sum + end - start, 0);
  const gaps = merged.slice(1).map(([start], index) => start - merged[index][1]);
  const longest = [...gaps.keys()].sort((a, b) => gaps[b] - gaps[a]).slice(0, MAX_BREAKS);
  const isLeftOut = (index) => gaps[index] > Math.max(MIN_GAP_MS, SHARE * total) && longest.includes(index);
  const parts = [{ start: merged[0][0], end: merged[0][1] }];
  merged.slice(1).forEach(([start, end], index) => {
    if (isLeftOut(index)) parts.push({ start, end });
    else parts[parts.length - 1].end = end;
  });
  const all = Math.max(1, parts.reduce((sum, part) => sum + part.end - part.start, 0));
  const share = (100 - BREAK * (parts.length - 1)) / all;
  let left = 0;
  for (const part of parts) {
    part.left = left;
    part.share = share;
    left += share * (part.end - part.start) + BREAK;
  }
  return parts;
}

// Where a time is on the axis, in percent.
export function placeOf(parts, time) {
  const part = parts.find(({ end }) => time <= end) ?? parts[parts.length - 1];
  return Math.max(0, Math.min(100, part.left + part.share * (Math.max(part.start, Math.min(time, part.end)) - part.start)));
}

// The breaks of the axis, with how many seconds each leaves out.
export const breaksOf = (parts) =>
  parts.slice(1).map((part, index) => ({ left: part.left - BREAK, width: BREAK, seconds: (part.start - parts[index].end) / 1000 }));

// The marks: seconds since the beginning of the axis, or of what follows the break before, which `after` tells.
export function ticksOf(parts) {
  const seconds = parts.reduce((sum, part) => sum + part.end - part.start, 0) / 1000;
  if (seconds < 1) return [];
  const step = NICE.find((size) => seconds / size <= TICKS) ?? Math.ceil(seconds / TICKS / 86400) * 86400;
  return parts.flatMap((part, after) =>
    Array.from({ length: Math.floor((part.end - part.start) / 1000 / step) }, (_, index) => ({
      seconds: (index + 1) * step,
      left: part.left + part.share * 1000 * (index + 1) * step,
      after,
    })),
  );
}
