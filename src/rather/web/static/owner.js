// The owner's page: everything on it is text that the server sends as JSON and that is set as text, never as HTML.
"use strict";

const token = document.querySelector('meta[name="rather-token"]').content;
const at = (id) => document.getElementById(id);
const percent = (share) => `${Math.round(100 * share)} %`;

async function call(path, method = "GET", body = undefined) {
  const headers = { "Content-Type": "application/json", "X-Rather-Token": token };
  const answer = await fetch(`${path}?as=${document.querySelector('meta[name="rather-invitation"]').content}`, { method, headers, body: body && JSON.stringify(body) });
  const said = await answer.json().catch(() => ({}));
  if (answer.ok) return said;
  const detail = typeof said.detail === "string" ? said.detail : said.detail?.[0]?.msg || `the server says ${answer.status}`;
  throw Object.assign(new Error(detail), { status: answer.status });
}

function element(tag, text = "", kind = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  made.className = kind;
  return made;
}

function button(text, whom, act) {
  const made = element("button", text);
  made.setAttribute("aria-label", `${text} ${whom}`);
  made.type = "button";
  made.addEventListener("click", async () => {
    try {
      await act();
      at("people-said").textContent = "";
    } catch (error) {
      at("people-said").textContent = error.message;
    }
    await show();
  });
  return made;
}

function personRow(person, slowest) {
  const row = document.createElement("tr");
  const head = element("th", person.name + (person.simulated ? " (simulated)" : ""));
  head.scope = "row";
  const of = (pair) => (pair && pair[1] ? `${pair[0]} of ${pair[1]}` : "");
  const cells = [
    person.answers ?? "", person.skipped ?? "", person.seconds === null ? "" : person.seconds.toFixed(1), of(person.left), of(person.gold),
    of(person.repeats), person.flagged || "",
  ].map((text) => element("td", text, "n"));
  if (person.seconds !== null) cells[2].append(tinyBar(person.seconds / Math.max(slowest, 1e-9)));
  if (person.left_interval) {
    const [low, high] = person.left_interval, side = low > 0.5 ? "left" : high < 0.5 ? "right" : "";
    cells[3].append(tinyInterval(low, person.left[0] / person.left[1], high), element("span", side && `leans ${side}`, "leans"));
    cells[3].title = `${percent(low)} to ${percent(high)}`;
  }
  row.append(head, element("td", person.role || "no link"), ...cells);
  row.append(element("td", person.expires ? new Date(1000 * person.expires).toLocaleDateString() : ""));
  const last = element("td");
  if (person.role !== "owner") {
    const path = `api/people/${person.id}`;
    if (person.role) last.append(button("Revoke", person.name, () => call(path, "DELETE")));
    last.append(button("Erase", person.name, async () => {
      if (confirm(`Delete all that ${person.name} has answered? Nothing brings it back.`)) await call(`${path}/answers`, "DELETE");
    }));
  }
  row.append(last);
  return row;
}

function link(question) {
  const made = element("a", `question ${question}`);
  made.href = `${location.pathname}#question-${question}`;
  return made;
}

function item(question, text) {
  const made = element("li");
  made.append(link(question), text);
  return made;
}

let lastDrawn = "";
let touched = false;  // what the owner has changed in the form is not yet the server's
at("asking").addEventListener("input", () => { touched = true; });
async function show() {
  const [found, audit] = await Promise.all([call("api/overview"), call("api/audit")]);
  const asOf = found.as_of;
  at("as-of").textContent = asOf === null ? "The figures below are being counted." :
    `Agreement, people's figures, disagreements and flags as of ${new Date(1000 * asOf).toLocaleTimeString()}.`;
  delete found.as_of;
  if (JSON.stringify([found, audit]) === lastDrawn) return;  // leave the focus where it is
  lastDrawn = JSON.stringify([found, audit]);
  at("done").max = Math.max(found.questions, 1);
  at("done").value = found.complete;
  at("totals").textContent = `${found.complete} of ${found.questions} questions have their ${found.asking.overlap}; ${found.answers} answers`;
  const { questions, raw, alpha, low, high } = found.agreement ?? {};
  const agree = questions ? `Agreement on ${questions} questions: ${percent(raw)} of pairs of answers` +
    (alpha === null ? "." : `, Krippendorff's alpha ${alpha.toFixed(2)} (95 % interval ${low.toFixed(2)} to ${high.toFixed(2)}).`) : found.agreement ? "No question has two answers yet." : "";
  const bias = found.position;
  at("agreement").textContent = agree + (bias ? ` The left side was preferred ${bias.left} of ${bias.total} times ` +
    `(${percent(bias.low)} to ${percent(bias.high)}; p = ${bias.p_value.toPrecision(2)} for no bias).` : "");
  at("problems").textContent = found.problems.join(" ");
  const slowest = Math.max(...found.people.map((p) => p.seconds ?? 0));
  at("people").replaceChildren(...found.people.map((person) => personRow(person, slowest)));
  overTime(found.over_time, found.questions);
  const { counts, left_out: leftOut } = found.flags ?? { counts: {} };
  const flagged = Object.entries(counts).filter(([, count]) => count).map(([flag, count]) => `${count} ${flag}`);
  at("flags").textContent = flagged.length ? `${flagged.join(", ")}: ${leftOut} not learned from` : "";
  const none = (list) => (list.length ? list : [element("li", "none", "soft")]);
  at("contested").replaceChildren(...none((found.contested ?? []).map((q) =>
    item(q.question, `: ${q.words} (${q.answers.map(([judge, said]) => `${judge}: ${said}`).join(", ")})`))));
  at("flagged").replaceChildren(...none((found.flagged ?? []).map((x) =>
    item(x.question, `, ${x.judge}: ${x.reasons.join(", ")}${x.seconds === null ? "" : `, ${x.seconds.toFixed(1)} s`}`))));
  at("audit").replaceChildren(...none(audit.map((x) => element("li", `${new Date(1000 * x.created).toLocaleString()} ${x.who}: ${x.what}${x.whom && ` (${x.whom})`}`))));
  const form = at("asking");
  if (!touched && !form.contains(document.activeElement)) {
    for (const [key, value] of Object.entries(found.asking)) {
      if (key === "leave_out") for (const box of form.elements[key]) box.checked = value.includes(box.value);
      else form.elements[key].value = value;
    }
  }
}

at("asking").addEventListener("submit", async (event) => {
  event.preventDefault();
  const form = event.target.elements;
  const body = Object.fromEntries(["overlap", "gold", "repeats", "random", "fastest_s"].map((key) => [key, Number(form[key].value)]));
  try {
    await call("api/asking", "PUT", { ...body, leave_out: [...form.leave_out].filter((box) => box.checked).map((box) => box.value) });
    at("changed").textContent = "Changed, from the next question on.";
    touched = false;
  } catch (error) {
    at("changed").textContent = error.message;
  }
  event.target.querySelector("button").blur();
  await show();
});

// "Every answer" has all criteria.
const chooseForm = () => { if (at("criterion")) at("criterion").disabled = ["all", "unpaired"].includes(at("form").value); };
at("form").addEventListener("change", chooseForm);
chooseForm();  // a browser may remember what was chosen before a reload

addEventListener("DOMContentLoaded", () => {  // by now the other parts of the page are there
  for (const button of document.querySelectorAll("button[type=submit]:disabled")) button.disabled = false;
  show();
});
setInterval(() => show().catch((error) => {
  lastDrawn = "";  // so that the totals come back
  at("totals").textContent = error.message;
}), 5000);
