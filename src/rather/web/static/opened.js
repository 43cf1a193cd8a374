// One question, opened by the owner: as people see it, but with its sides in the order a, b; and all that was ever said about it. Its
// number stands in the page's address.
"use strict";

const player = new Player();
const FRESH_MS = 4000;
let opened = 0;         // its number, or 0
let drawnQuestion = "", drawnAnswers = "";

function numberInAddress() {
  return Number((location.hash.match(/^#question-(\d{1,10})$/) || [])[1] || 0);
}

function answerRow(x) {
  const row = element("tr", "", x.counts ? "" : "past");
  const who = element("th", x.judge + (x.simulated ? " (no person)" : ""));
  who.scope = "row";
  const order = x.order.length > 2 ? `order ${[...x.order].join(" ")}` : x.order[0] ?? "";
  const said = [x.said, ...Object.entries(x.criteria).map(([name, words]) => `${name}: ${words}`)].join("; ");
  const cells = [new Date(1000 * x.created).toLocaleString(), said, order].map((text) => element("td", text));
  row.append(who, ...cells, element("td", x.seconds === null ? "" : x.seconds.toFixed(1), "n"));
  row.append(...[x.flags.join(", "), x.reason, x.counts ? "yes" : "no"].map((text) => element("td", text)));
  return row;
}

function about(found) {
  const parts = [`Purpose: ${found.purpose} (${found.why}). `];
  if (found.known !== null && found.original === null) parts.push(`Its answer is known: ${found.known}. `);
  if (found.original !== null) parts.push("It repeats ", link(found.original), `, to which the answer was: ${found.known}. `);
  found.repeats.forEach((number, i) => parts.push(i ? ", " : "It was asked again as ", link(number)));
  if (found.repeats.length) parts.push(". ");
  found.written.forEach((number, i) => parts.push(i ? ", " : "An answer was written in place of its own: ", link(number)));
  return parts;
}

// What may be decided: a side by its letter, or of one side alone whether it is good.
function choices(sides) {
  const named = sides === 1 ? [["good", "good"], ["bad", "bad"]] :
    [..."abcdefgh"].slice(0, sides).map((letter) => [letter, `${letter} is ${sides > 2 ? "best" : "better"}`]);
  return [...named, ["tie", sides === 1 ? "neither" : "tie"]].map(([choice, text]) => {
    const label = element("label", "", "check"), radio = element("input");
    Object.assign(radio, { type: "radio", name: "choice", value: choice, required: true });
    label.append(radio, ` ${text}`);
    return label;
  });
}

async function decide(method, body) {
  const number = opened;
  at("decided").textContent = "";
  try {
    await call(`api/owner/questions/${number}/decision`, method, body);
    if (number !== opened) return;
    at("decided").textContent = body ? "Decided: this alone is learned from." : "Taken back: people's answers count again.";
    await refresh();
  } catch (error) {
    at("decided").textContent = number === opened ? error.message : `Question ${number}: ${error.message}`;
  }
}

at("decide").addEventListener("submit", (event) => {
  event.preventDefault();
  const { choice, reason } = event.target.elements;
  decide("PUT", { choice: choice.value, reason: reason.value });
});
at("take-back").addEventListener("click", () => decide("DELETE"));

function drawOpened(found) {
  const { question, ...rest } = found;
  if (JSON.stringify(question) !== drawnQuestion) {
    drawnQuestion = JSON.stringify(question);
    at("question").hidden = false;
    draw({ ...question, letters: question.order }, player);
    at("choices").replaceChildren(at("choices").firstElementChild, ...choices(question.sides.length));
    at("decide").hidden = false;
  }
  if (JSON.stringify(rest) === drawnAnswers) return;  // leave the focus where it is
  drawnAnswers = JSON.stringify(rest);
  at("opened-about").replaceChildren(...about(rest));
  at("said").replaceChildren(...rest.answers.map(answerRow));
  at("take-back").hidden = !rest.answers.some((x) => x.kind === "decision" && x.counts);
}

async function refresh() {
  const number = opened;
  if (!number) return;
  try {
    const found = await call(`api/owner/questions/${number}`);
    if (number !== opened) return;
    at("not-opened").textContent = "";
    drawOpened(found);
  } catch (error) {
    if (number === opened) at("not-opened").textContent = error.message;
  }
}

// The address says what is shown, so that the browser's back button works.
function follow() {
  opened = numberInAddress();
  at("opened").hidden = !opened;
  at("overview").hidden = Boolean(opened);
  at("not-opened").textContent = drawnQuestion = drawnAnswers = "";
  at("question").hidden = at("decide").hidden = true;
  at("decided").textContent = "";
  at("decide").reset();
  player.clear();
  if (!opened) return;
  at("opened-name").textContent = `Question ${opened}`;
  at("opened-about").replaceChildren();
  at("said").replaceChildren();
  at("opened-name").focus();
  refresh();
}

const goTo = (number) => { location.hash = `question-${number}`; };

at("open").addEventListener("submit", (event) => {
  event.preventDefault();
  goTo(Number(event.target.elements.number.value));
});
at("random").addEventListener("click", async () => {
  try {
    goTo((await call("api/owner/questions/random")).question.id);
  } catch (error) {
    at("not-opened").textContent = error.message;
  }
});
addEventListener("hashchange", follow);
setInterval(refresh, FRESH_MS);
follow();
