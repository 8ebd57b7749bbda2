// Every page works without this script. With it, forms are sent without leaving the page (and keep what was
// typed), and jobs are updated while some are unfinished. No library is needed for these two.

const PAUSE_MS = 1000;

const read = async (answer) => new DOMParser().parseFromString(await answer.text(), "text/html");

const keep = (root, values) => {
  for (const [name, value] of Object.entries(values)) {
    const field = root.querySelector(`#draw [name="${name}"], #sign-in [name="${name}"]`);
    if (field && value) field.value = value;
  }
};

// Send a form without leaving the page: the answer replaces the page, or only the form if it has errors.
const send = async (form, button) => {
  const fields = new URLSearchParams(new FormData(form));
  if (form.id === "draw") fields.set("next", "/");
  button.disabled = true;
  try {
    const answer = await fetch(form.action, { method: "POST", body: fields });
    const page = await read(answer);
    const again = page.getElementById(form.id);
    if (answer.ok) {
      const focused = document.activeElement?.id;
      document.title = page.title;
      document.body.replaceWith(page.body);
      if (form.id === "draw") {
        const { once, token, api_key, ...typed } = Object.fromEntries(fields);
        keep(document, typed);
        document.querySelector("#draw details")?.toggleAttribute("open", form.querySelector("details").open);
        lead(new URL(answer.url).searchParams.get("drawn"), focused, form.getAttribute("action"));
      } else {
        history.replaceState(null, "", answer.url);
        (document.getElementById("prompt") ?? document.getElementById("main"))?.focus();
      }
    } else if (again) {
      if (form.querySelector("details")?.open) again.querySelector("details").open = true;
      form.replaceWith(again);
      keep(document, { api_key: fields.get("api_key") });
      const wrong = again.querySelector("[aria-invalid]") ?? again.querySelector("[role=alert]");
      if (wrong.matches("[role=alert]")) wrong.tabIndex = -1; // so that it can take the focus
      wrong.focus();
    } else {
      tell(form, page.querySelector("main [role=alert]")?.textContent);
    }
  } catch {
    tell(form, "calotype does not answer; try again.");
  } finally {
    button.disabled = false;
  }
};

// Announce the new job and move the focus to its card. On a wide screen, where the form is beside the jobs and the
// card is visible, the focus stays in the form, so that the next prompt can be typed at once.
const lead = (id, focused, here) => {
  const card = document.getElementById(id);
  history.replaceState(null, "", card ? `${here}#${id}` : here);
  const place = card?.getBoundingClientRect();
  const inSight = card && place.top >= 0 && place.bottom <= innerHeight;
  if (card && !(inSight && matchMedia("(min-width: 60rem)").matches)) {
    card.scrollIntoView();
    card.focus({ preventScroll: true });
  } else {
    (document.getElementById(focused) ?? document.getElementById("main")).focus({ preventScroll: true });
  }
  // Delayed, since screen readers may miss text that appears while the page changes.
  setTimeout(() => {
    document.getElementById("news").textContent = "Accepted. The new job is the first of the latest jobs.";
  }, 100);
};

const tell = (form, text) => {
  const line = form.querySelector(".answer") ?? document.createElement("p");
  line.className = "bad answer";
  line.setAttribute("role", "alert");
  line.textContent = text ?? "That did not work; try again.";
  form.prepend(line);
};

document.addEventListener("submit", (event) => {
  if (!event.target.matches("[data-stay]")) return;
  event.preventDefault();
  send(event.target, event.submitter ?? event.target.querySelector("button"));
});

document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) event.target.closest("form")?.requestSubmit();
});

// Replace what has changed and keep the rest, so that no image is loaded twice.
const renew = (shown, fresh) => {
  const focused = shown.contains(document.activeElement) ? document.activeElement : null;
  for (const item of fresh.querySelectorAll("[data-item]")) {
    const same = document.getElementById(item.id);
    if (same?.outerHTML === item.outerHTML) item.replaceWith(same);
  }
  const news = fresh.dataset.news;
  if (news !== shown.dataset.news) document.getElementById("news").textContent = news;
  shown.replaceWith(fresh);
  const href = focused?.getAttribute("href");
  const same = focused?.id ? document.getElementById(focused.id) : href && fresh.querySelector(`a[href="${CSS.escape(href)}"]`);
  same?.focus({ preventScroll: true });
};

const look = async () => {
  const shown = document.querySelector("[data-live]");
  if (shown && !document.hidden) {
    try {
      const answer = await fetch(shown.dataset.live);
      if ([401, 403, 404].includes(answer.status)) {
        // The session has ended, or the job belongs to another account: asking again would not help.
        shown.removeAttribute("data-live");
        document.getElementById("news").textContent = "No longer up to date: enter the key again.";
        return;
      }
      const fresh = answer.ok && (await read(answer)).getElementById(shown.id);
      // The page may have changed while the request was running.
      if (fresh && shown.isConnected) renew(shown, fresh);
      if (answer.ok && !fresh) location.reload(); // the database is back
    } catch {
      // The server cannot be reached; the next round tries again.
    }
  }
  setTimeout(look, PAUSE_MS);
};

look();
