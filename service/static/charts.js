// Draws a page's charts; on a live page keeps them up to date too, without drawing them anew.
"use strict";

(() => {
  const live = document.getElementById("live");
  const given = document.getElementById("specs");
  if (!(live || given) || !window.vegaEmbed) return;
  const pulse = document.getElementById("pulse");
  const views = new Map();
  const PERIOD = 5000;
  let known = null;

  function theme() {
    const dark = matchMedia("(prefers-color-scheme: dark)").matches;
    return document.documentElement.dataset.theme || (dark ? "dark" : "light");
  }

  async function draw(name) {
    const box = document.querySelector(`[data-chart="${name}"]`);
    const spec = known.charts[name];
    if (!box || !spec.data.values.length) return;
    const inner = document.createElement("div");
    box.replaceChildren(inner);
    const result = await vegaEmbed(inner, spec, {
      actions: false,
      ast: true,
      config: known.themes[theme()],
      defaultStyle: false,
      renderer: "svg",
      tooltip: { disableDefaultStyle: true },
    });
    views.get(name)?.finalize();
    views.set(name, result.view);
  }

  function refresh(name) {
    const view = views.get(name);
    if (!view) return draw(name);
    const rows = known.charts[name].data.values;
    return view.data("rows", structuredClone(rows)).runAsync();
  }

  function replace(parts) {
    for (const place of live.querySelectorAll("[data-part]")) {
      const fresh = parts[place.dataset.part];
      if (fresh !== undefined && place.dataset.last !== fresh) {
        place.innerHTML = fresh;
        place.dataset.last = fresh;
      }
    }
  }

  async function update() {
    if (document.hidden) return;
    try {
      const reply = await fetch(live.dataset.source, { headers: { Accept: "application/json" } });
      if (reply.redirected || reply.status === 401) return location.reload();
      if (!reply.ok) throw new Error(reply.statusText);
      known = await reply.json();
      replace(known.parts);
      await Promise.all(Object.keys(known.charts).map(refresh));
      pulse.classList.add("on");
      pulse.lastElementChild.textContent = known.freshness;
    } catch (error) {
      pulse.classList.remove("on");
      pulse.lastElementChild.textContent = "Cannot reach Barter; these are the last numbers.";
    }
  }

  function redraw() {
    if (known) Object.keys(known.charts).forEach(draw);
  }

  document.addEventListener("themechange", redraw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  if (live) {
    document.addEventListener("visibilitychange", update);
    update().then(() => setInterval(update, PERIOD));
  } else {
    known = JSON.parse(given.textContent);
    redraw();
  }
})();
