// Light or dark as Airflow's own pages are, also where an installation has colours of its own.
(() => {
  const root = document.documentElement;
  const media = matchMedia("(prefers-color-scheme: dark)");
  const colours = ["bg", "bg-subtle", "bg-muted", "fg", "fg-muted", "border", "brand-solid"];

  function outer() {
    try {
      return window.parent === window ? null : window.parent.document.documentElement;
    } catch {
      return null; // a page of another site
    }
  }

  function isDark() {
    const around = outer();
    for (const name of ["dark", "light"]) if (around?.classList.contains(name)) return name === "dark";
    try {
      const chosen = localStorage.getItem("theme");
      if (chosen === "dark" || chosen === "light") return chosen === "dark";
    } catch {
      // storage may be switched off
    }
    return media.matches;
  }

  function apply() {
    root.classList.toggle("dark", isDark());
    const around = outer();
    if (!around) return;
    root.classList.add("embedded");
    const style = getComputedStyle(around);
    for (const name of colours) {
      const value = style.getPropertyValue(`--chakra-colors-${name}`).trim();
      if (value) root.style.setProperty(`--airflow-${name}`, value);
    }
  }

  apply();
  media.addEventListener("change", apply);
  window.addEventListener("storage", apply);
  const around = outer();
  if (around) new MutationObserver(apply).observe(around, { attributes: true, attributeFilter: ["class", "style"] });
})();
