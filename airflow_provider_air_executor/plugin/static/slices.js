// Long lists are shown part by part, so that the page answers in between.

import { useEffect, useRef, useState } from "./preact.js";

const steps = [];
const channel = new MessageChannel();
channel.port1.onmessage = () => {
  steps.shift()?.();
  if (steps.length) channel.port2.postMessage(null);
};

function later(step) {
  steps.push(step);
  if (steps.length === 1) channel.port2.postMessage(null);
}

// The value, at once or when it is this part's turn; before its first one, null.
export function useLater(value, isAtOnce) {
  const [shown, setShown] = useState(null);
  const latest = useRef(value);
  const isWaiting = useRef(false);
  latest.current = value;
  useEffect(() => {
    if (isAtOnce || isWaiting.current) return;
    isWaiting.current = true;
    later(() => {
      isWaiting.current = false;
      setShown(latest.current);
    });
  }, [value]);
  return isAtOnce ? value : shown;
}
