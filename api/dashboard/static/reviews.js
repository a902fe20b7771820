// Keys of the review queue. None of them decides: they move, open, and put the cursor where a reason is written.
// They rest while somebody types, and can be switched off, for speech input and screen readers use them too.
"use strict";

(() => {
  const KEY = "titer.single-keys";
  const dialog = document.querySelector("[data-shortcuts]");
  const form = document.querySelector("[data-decide]");
  const areOn = () => localStorage.getItem(KEY) !== "off";

  function showButtons() {
    for (const button of document.querySelectorAll("[data-show-shortcuts]")) button.hidden = false;
  }
  showButtons();
  document.addEventListener("htmx:after:swap", showButtons);
  document.addEventListener("click", (event) => {
    if (event.target.closest("[data-show-shortcuts]")) dialog.showModal();
  });
  const on = dialog.querySelector("[data-keys-on]");
  on.checked = areOn();
  on.addEventListener("change", () => localStorage.setItem(KEY, on.checked ? "on" : "off"));

  // ── Moving ─────────────────────────────────────────────────────────────────────────────────────
  function move(by) {
    const links = [...document.querySelectorAll("[data-review]")];
    if (links.length === 0) {
      document.querySelector(by > 0 ? 'a[rel="next"]' : 'a[rel="prev"]')?.click();
      return;
    }
    const here = links.indexOf(document.activeElement);
    const to = here < 0 ? (by > 0 ? 0 : links.length - 1) : Math.min(Math.max(here + by, 0), links.length - 1);
    links[to].focus();
    links[to].scrollIntoView({ block: "nearest" });
  }

  // ── Deciding ───────────────────────────────────────────────────────────────────────────────────
  function choose(decision) {
    const choice = form?.querySelector(`[name="decision"][value="${decision}"]:not(:disabled)`);
    if (!choice) return false;
    choice.checked = true;
    sayWhatItDoes();
    form.querySelector("textarea").focus();
    return true;
  }

  function sayWhatItDoes() {
    const choice = form.querySelector('[name="decision"]:checked');
    const button = form.querySelector("[data-decide-button]");
    button.textContent = choice ? choice.dataset.says : "Decide";
    button.classList.toggle("danger", choice?.value === "reject");
    button.classList.toggle("primary", choice?.value !== "reject");
  }

  if (form) {
    form.addEventListener("change", sayWhatItDoes);
    sayWhatItDoes(); // Browsers keep a choice when somebody comes back.
    form.querySelector("textarea").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
      if (event.key === "Escape") event.target.blur();
    });
  }

  const actions = {
    j: () => move(1),
    k: () => move(-1),
    o: () => document.activeElement?.matches("[data-review]") && document.activeElement.click(),
    u: () => document.querySelector("[data-up]")?.click(),
    r: () => choose("release"),
    x: () => choose("reject"),
    e: () => choose("reevaluate"),
    "?": () => dialog.showModal(),
  };
  document.addEventListener("keydown", (event) => {
    if (!areOn() || dialog.open || event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
    if (event.target.closest("input:not([type=radio]), textarea, select, [contenteditable]")) return;
    const act = actions[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  });
})();
