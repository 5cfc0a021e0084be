// Small comforts on pages that work without them: theme, copying, progress, rows and messages of forms.
"use strict";

(() => {
  const root = document.documentElement;

  document.addEventListener("submit", (event) => {
    const form = event.target.closest("[data-theme-form]");
    if (!form) return;
    event.preventDefault();
    const dark = matchMedia("(prefers-color-scheme: dark)").matches;
    const now = root.dataset.theme || (dark ? "dark" : "light");
    const body = new URLSearchParams(new FormData(form));
    body.set("theme", now === "dark" ? "light" : "dark");
    root.dataset.theme = body.get("theme");
    document.dispatchEvent(new Event("themechange"));
    fetch(form.action, { method: "POST", body, redirect: "manual" });
  });

  for (const button of document.querySelectorAll("[data-copy]")) {
    const field = document.getElementById(button.dataset.copy);
    field.addEventListener("focus", () => field.select());
    button.hidden = !navigator.clipboard;
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(field.value);
      button.querySelector("span").textContent = "Copied";
    });
  }

  // ---- progress: parts of the page follow what is being done, until it is done

  const moving = document.querySelector("[data-poll]");

  async function follow() {
    let again = true;
    try {
      const reply = await fetch(moving.dataset.poll, { headers: { Accept: "application/json" } });
      if (reply.redirected || reply.status === 401) return location.reload();
      if (reply.ok) {
        const known = await reply.json();
        for (const place of moving.querySelectorAll("[data-part]")) {
          const fresh = known.parts[place.dataset.part];
          if (fresh !== undefined && place.dataset.last !== fresh) place.innerHTML = place.dataset.last = fresh;
        }
        again = known.moving;
      }
    } catch (error) {
      // Barter cannot be reached just now: what is shown stays, and it is asked again.
    }
    if (again) setTimeout(follow, 1000);
    else if (moving.dataset.then === "reload") location.reload();
  }

  if (moving) follow();

  // ---- files: one that is too large is told of before it is sent

  const file = document.querySelector("input[data-limit]");
  file?.addEventListener("change", () => {
    const large = file.files[0]?.size > Number(file.dataset.limit);
    const said = large ? "The file is larger than 1 GiB. Split it, or use barter import on the command line, which takes files of any size." : "";
    document.getElementById("file-error").textContent = said;
    file.setCustomValidity(said);
  });

  // ---- rows: the server draws the form with a row more or less, and it takes the old one's place

  const parse = (text) => new DOMParser().parseFromString(text, "text/html");
  const form = document.querySelector("form[data-rows]");
  if (!form) return;

  // Not form.action: buttons of that name hide the property.
  const address = form.getAttribute("action");

  async function changeRows(button) {
    const body = new URLSearchParams(new FormData(form));
    body.set("action", button.value);
    const reply = await fetch(address, { method: "POST", body });
    if (!reply.ok) return location.reload();
    const fresh = parse(await reply.text()).querySelector("form[data-rows]");
    const fields = () => [...form.querySelectorAll("input:not([type=hidden])")];
    const known = new Set(fields().map((field) => field.name));
    const open = new Set([...form.querySelectorAll("fieldset[id]:has(details[open])")].map((row) => row.id));
    form.replaceChildren(...fresh.childNodes);
    for (const id of open) form.querySelector(`#${id} details`)?.setAttribute("open", "");
    const added = fields().find((field) => !known.has(field.name));
    const target = added || form.querySelector(`[value="${CSS.escape(button.value)}"]`) || form.querySelector("[value^=add]");
    target?.focus({ preventScroll: !added });
  }

  form.addEventListener("submit", (event) => {
    const button = event.submitter;
    if (!button || !button.hasAttribute("data-row")) return;
    event.preventDefault();
    changeRows(button);
  });

  // ---- messages: what the server would say about the fields that have been filled in

  const touched = new Set([...form.querySelectorAll("[aria-invalid]")].map((field) => field.name));
  let waiting = 0;
  let asked = 0;

  function show(errors) {
    for (const place of form.querySelectorAll("[data-error]")) {
      const name = place.dataset.error;
      if (!touched.has(name) && !touched.has("*")) continue;
      const said = errors[name] || "";
      if (place.textContent !== said) place.textContent = said;
      const field = form.elements.namedItem(name);
      if (!field || !field.setAttribute) continue;
      if (said) field.setAttribute("aria-invalid", "true");
      else field.removeAttribute("aria-invalid");
    }
  }

  async function check() {
    const turn = ++asked;
    const reply = await fetch(form.dataset.check, {
      method: "POST",
      body: new URLSearchParams(new FormData(form)),
    });
    if (reply.ok && turn === asked) show(await reply.json());
  }

  form.addEventListener("change", (event) => {
    if (!event.target.name) return;
    touched.add(event.target.name);
    clearTimeout(waiting);
    waiting = setTimeout(check, 250);
  });

  document.getElementById("summary")?.focus();
})();
