// Runs before the page is drawn, so that it does not flash in the other colours.
"use strict";
(() => {
  let chosen = null;
  try {
    chosen = localStorage.getItem("batchmill-theme");
  } catch {
    // The browser keeps nothing; the system's colours apply.
  }
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
})();
