// Light or dark before the first paint: a classic script in the head, so nothing flashes.
// Without a choice the system's colours hold; CSS does that alone.
(() => {
  let chosen = null;
  try {
    chosen = localStorage.getItem("tunnel.theme");
  } catch {
    // Storage may be forbidden: then the choice lasts as long as the page.
  }
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
})();
