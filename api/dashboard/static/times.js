// Tells times in the reader's own zone: pages are written in UTC, and stay so without this.
"use strict";

(() => {
  const full = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "long" });
  const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });

  function localise() {
    for (const time of document.querySelectorAll("time[datetime]")) {
      const moment = new Date(time.dateTime);
      if (Number.isNaN(moment.getTime())) continue;
      time.title = full.format(moment);
      if (time.hasAttribute("data-clock")) time.textContent = clock.format(moment);
      if (time.hasAttribute("data-full")) time.textContent = time.title;
    }
  }

  document.addEventListener("htmx:after:swap", localise);
  localise();
})();
