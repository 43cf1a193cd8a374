// An answer never waits for the network: it goes into the outbox, and from there to the server. The next question is fetched while this
// one is being read. What is answered is what was on the screen: each answer names the order of the sides and how the question was given.
"use strict";

const meta = (name) => document.querySelector(`meta[name="rather-${name}"]`).content;
const invitation = meta("invitation");
const at = (id) => document.getElementById(id);
const buttons = document.querySelectorAll("nav button:not(#more)");
const choices = { "=": "tie", b: "both_bad" };
const SOON_MS = 300;             // a second press so soon after the first is meant for the question before
const LARGEST_PAST = 1_000_000;  // characters of questions that are remembered for undo
const player = new Player();
const tabs = new BroadcastChannel(`rather:${document.baseURI}:${meta("person")}`);

let current = null;   // the question on the screen
let ahead = null;     // the one after it
let given = [];       // the last answers of this tab, for undo: the question and the answer's key
let shownAt = 0;      // when all of it could be seen
let done = 0;         // answers that the server has, as it said
let total = 0;
let fetching = false;
let ended = false;    // the server had no more questions
let problem = "";     // why clips could not be drawn, if there is no question
let timer = 0;        // when to ask again
let undoing = false;
const elsewhere = new Set();  // questions that another tab of this person has answered

const outbox = new Outbox(meta("person"), call, kept, (message) => { at("refused").textContent = message; });

function kept() {
  const waiting = outbox.length ? `${outbox.length} kept here until the server has them.` : "";
  const lost = outbox.memory.length ? " This browser has no room to keep answers: leave this page open until they are sent." : "";
  const closed = [401, 403].includes(outbox.trouble?.status) ? ` ${outbox.trouble.message}` : "";
  at("kept").textContent = waiting + lost + closed;
  if (!outbox.length) more();
  tell();
}

async function call(path, body) {
  const options = body ? {
    method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json", "X-Rather-Token": meta("token") },
  } : {};
  const address = `${path}${path.includes("?") ? "&" : "?"}as=${invitation}`;
  const answer = await fetch(address, { ...options, signal: AbortSignal.timeout(10000) });
  if (answer.ok) return answer.json();
  const said = await answer.json().catch(() => ({}));
  const error = new Error(typeof said.detail === "string" ? said.detail : `the server says ${answer.status}`);
  error.status = answer.status;
  throw error;
}

async function more() {
  if (fetching || (current && ahead)) return;
  fetching = true;
  const held = [current, ahead].filter(Boolean).map((q) => q.id).concat(outbox.questions, ...elsewhere);
  try {
    const found = await call("api/next?" + held.map((id) => `held=${id}`).join("&"));
    done = found.progress.mine;
    total = found.progress.questions;
    ended = found.question === null;
    problem = found.problem;
    if (found.question) {
      ahead = found.question;
      for (const attempt of ahead.sides.flat()) if (attempt.clip) new Image().src = attempt.clip.url;
    }
    if (!current) forward();
    else tell();
  } catch (error) {
    at("message").textContent = error.status === 401 || error.status === 403 ? error.message : current ? "" : "Waiting for the connection ...";
    later(1000);
    return;
  } finally {
    fetching = false;
  }
  if (!(current && ahead)) {
    if (ended) later(5000);
    else more();
  }
}

function later(milliseconds) {
  clearTimeout(timer);
  timer = setTimeout(more, milliseconds);
}

function forward() {
  current = ahead;
  ahead = null;
  show();
}

function show() {
  at("question").hidden = !current;
  at("question").dataset.number = current ? current.id : "";
  const count = current ? current.sides.length : 2;
  for (const button of buttons) {
    const { choice, place } = button.dataset;
    button.hidden = place ? count === 2 || place > count : count > 2 && (choice === "left" || choice === "right");
  }
  at("both-bad").textContent = count > 2 ? "all bad" : "both bad";
  if (current) {
    draw(current, player);
    shownAt = performance.now();
    window.scrollTo(0, 0);
  }
  enable();
  tell();
}

// While a clip is missing, a question can only be skipped.
function enable() {
  for (const button of buttons) button.disabled = button.id !== "undo" && !(current && (button.id === "skip" || player.ready));
}
player.changed = () => {
  if (player.ready) shownAt = performance.now();  // before, there was nothing to be seen whole
  enable();
};

function tell() {
  at("progress").textContent = total ? `${Math.min(done + outbox.length, total)} of ${total} answered` : "";
  const none = problem ? `Some clips cannot be shown: ${problem}` : "There is nothing to compare right now. New questions appear here by themselves.";
  at("message").textContent = current ? "" : ended ? none : "One moment ...";
}

function tooSoon() {
  return performance.now() - shownAt < SOON_MS;
}

function answer(choice, details = {}) {
  if (!current || tooSoon() || (choice !== "skip" && !player.ready)) return;
  const seconds = (performance.now() - shownAt) / 1000;
  const key = crypto.randomUUID ? crypto.randomUUID() : Array.from(crypto.getRandomValues(new Uint32Array(4)), String).join("-");
  const { id: question, lease, order, invitation } = current;
  at("refused").textContent = "";
  given.push({ question: current, key });
  forget();
  outbox.add("api/answers", { question, lease, order, invitation, choice, key, seconds, ...details });
  tabs.postMessage(question);
  forward();
  more();
}

function pick(place, slight) {
  if (current.sides.length > 2) answer("place", { place });
  else answer(["left", "right"][place - 1], slight ? { slight: true } : {});
}

// Of the questions that were answered the last ten are remembered, or fewer if they are long.
function forget() {
  given = given.slice(-10);
  while (given.length > 1 && JSON.stringify(given).length > LARGEST_PAST) given.shift();
}

async function undo() {
  if (undoing) return;
  undoing = true;
  const last = given.pop() || await lastAnswer();
  if (last) await outbox.add("api/undo", { question: last.question.id, ...(last.key ? { key: last.key } : {}) });
  undoing = false;
  if (!last) return;
  ahead = current || ahead;
  current = last.question;
  show();
}

// The last answer that the server has, given before a reload or on another device.
async function lastAnswer() {
  try {
    if (outbox.length) throw new Error("the last answer is still here");
    const { answers: [last] } = await call("api/answers");
    if (last) return { question: await call(`api/questions/${last.question}`) };
    at("message").textContent = "There is nothing to undo.";
  } catch (error) {
    const gone = error.status === 404;  // given by an older version, which did not write down how it was shown
    at("message").textContent = gone ? "The last answer cannot be undone here any more." :
      "The last answer is on its way to the server; undo it in a moment.";
  }
  return undefined;
}

// Another tab of this person has answered a question: nobody needs to answer it here.
tabs.addEventListener("message", (event) => {
  elsewhere.add(event.data);
  setTimeout(() => elsewhere.delete(event.data), 60_000);  // by then the server has it, or it is this person's to answer again
  if (ahead && ahead.id === event.data) ahead = null;
  if (current && current.id === event.data) forward();
  more();
});

function skip(reason) {
  at("why").close();
  answer("skip", { reason });
}

function askWhy() {
  if (!current || tooSoon()) return;
  at("reason").value = "";
  at("why").showModal();
}

const reasons = [...document.querySelectorAll("[data-reason]")];
for (const button of reasons) button.addEventListener("click", () => skip(button.dataset.reason || at("reason").value));
at("stay").addEventListener("click", () => at("why").close());

function keyInDialog(event) {
  const typing = event.target === at("reason");
  if (event.key === "Enter" && (typing || event.target.tagName !== "BUTTON")) skip(at("reason").value);
  else if (!typing && ["1", "2", "3"].includes(event.key)) skip(reasons[Number(event.key) - 1].dataset.reason);
  else return;
  event.preventDefault();
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  if (at("why").open) {
    keyInDialog(event);
    return;
  }
  const key = event.key.toLowerCase();
  const digit = Number((event.code.match(/^(?:Digit|Numpad)([1-8])$/) || key.match(/^([1-8])$/) || [])[1]);
  if (event.target.tagName === "SELECT") return;
  if (digit && current && digit <= current.sides.length) pick(digit, event.shiftKey);
  else if (choices[key]) answer(choices[key]);
  else if (key === "s") askWhy();
  else if (key === "u") undo();
  else if (key === " " && !["BUTTON", "SUMMARY"].includes(event.target.tagName)) player.toggle();
  else if (key === ",") player.step(-1);
  else if (key === ".") player.step(1);
  else return;
  event.preventDefault();
});
for (const button of buttons) {
  const { choice, slight, place } = button.dataset;
  button.addEventListener("click", () => {
    if (button.id === "undo") undo();
    else if (button.id === "skip") askWhy();
    else if (place) pick(Number(place));
    else answer(choice, slight === undefined ? {} : { slight: true });
  });
}

show();
outbox.flush();
