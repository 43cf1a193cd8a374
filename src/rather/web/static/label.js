// An answer never waits for the network: it goes into the outbox, and from there to the server. The next question is fetched while this
// one is being read. What is answered is what was on the screen: each answer names the order of the sides and how the question was given.
"use strict";

const meta = (name) => document.querySelector(`meta[name="rather-${name}"]`).content;
const invitation = meta("invitation");
const at = (id) => document.getElementById(id);
const buttons = document.querySelectorAll("nav button:not(.menu)");
// What keys do, and buttons with that data-command; other files add theirs.
const commands = {
  "=": () => compare("tie"), b: () => compare("both_bad"), s: askWhy, u: undo, c: () => { if (current) comment.open(); },
  escape: () => { if (back) goBack(); }, "?": () => clock.open(at("help")),
  " ": () => player.toggle(), ",": () => player.step(-1), ".": () => player.step(1),
};
const SOON_MS = 300;             // a second press so soon after the first belongs to the question before
const LARGEST_PAST = 1_000_000;  // characters of questions that are remembered for undo
const player = new Player();
const clock = new Clock();
const comment = new Comment();
const steps = new Steps();
const tabs = new BroadcastChannel(`rather:${document.baseURI}:${meta("person")}`);

let current = null;   // the question on the screen
let ahead = null;     // the one after it
let back = null;      // what was left for an earlier answer: its question, the seconds that it took so far, its comment, what was said on criteria
let asked = 0;        // the question that is to be skipped
let given = [];       // the last answers of this tab, for undo: the question and the answer's key
let shownAt = 0;      // when all of it could be seen
let done = 0;         // answers that the server has, as it said
let acknowledged = 0; // answers and undos that the server has taken from this tab
let early = 0;        // of those that still wait here for its word
let share = null;     // questions that are this person's
let minutes = null;   // what the rest of them takes, if that can be said
let fetching = false;
let ended = false;    // the server had no more questions
let problem = "";     // why clips could not be drawn, if there is no question
let timer = 0;        // when to ask again
let undoing = false;
let reading = false;  // nothing is given out before the guidelines have been read
const again = new Set();      // questions with an earlier answer, which is changed
const elsewhere = new Set();  // questions that another tab of this person has answered

const outbox = new Outbox(meta("person"), send, kept, (message) => { at("refused").textContent = message; });

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

// Once the server has it, it counts, unless what the server said of progress was so new that it has been counted.
async function send(path, body) {
  const { criteria, ...whole } = body;
  const said = await call(path, body).catch((error) => {
    if (error.status !== 422 || !criteria) throw error;
    return call(path, whole);  // what was said on criteria that are no longer asked for goes, the answer stays
  });
  acknowledged += 1;
  if (early) early -= 1;
  else if (said.undone !== false) done += counted(path, body);
}

async function more() {
  if (reading || fetching || (current && ahead)) return;
  fetching = true;
  const before = acknowledged;
  const held = [current, ahead, back?.question].filter(Boolean).map((q) => q.id).concat(outbox.questions, ...elsewhere);
  try {
    const found = await call("api/next?" + held.map((id) => `held=${id}`).join("&"));
    if (share === null || acknowledged === before) {  // else it may say how far this person was before the last answer
      const { mine } = found.progress;
      early = share === null ? 0 : Math.max(0, Math.min(outbox.length, early + mine - done));
      done = mine;
      ({ share, minutes } = found.progress);
    }
    ended = found.question === null;
    problem = found.problem;
    if (found.question) {
      ahead = found.question;
      for (const trajectory of ahead.sides.flat()) if (trajectory.clip) new Image().src = trajectory.clip.url;
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
  if (back) {
    goBack();
    return;
  }
  current = ahead;
  ahead = null;
  show();
}

// Show a question that has an answer, which can be changed or withdrawn; the one on the screen waits.
function visit(question, reason, criteria = {}) {
  const here = current && current.id !== question.id ? current : null;
  back = back || { question: here, seconds: clock.seconds, comment: comment.text, said: steps.said };
  if (ahead && ahead.id === question.id) ahead = null;
  if (back.question && back.question.id === question.id) back.question = null;
  again.add(question.id);
  current = question;
  show();
  steps.begin(question.criteria, question.criteria.map((name) => (Object.hasOwn(criteria, name) ? criteria[name] : undefined)));
  comment.set(reason);
}

function goBack() {
  const { question, seconds, comment: text, said } = back;
  back = null;
  current = question || ahead;
  if (!question) ahead = null;
  show(question ? seconds : 0);
  if (question) {
    comment.set(text);
    steps.begin(question.criteria, said);
  }
  more();
}

function withdraw() {
  const { id } = current;
  again.delete(id);
  given = given.filter((last) => last.question.id !== id);
  outbox.add("api/undo", { question: id });
  goBack();
}

function show(seconds = 0) {
  at("earlier").hidden = !back;
  at("question").hidden = !current;
  at("question").dataset.number = current ? current.id : "";
  const count = current ? current.sides.length : 2;
  for (const button of buttons) {
    const { choice, place } = button.dataset;
    if (place) button.hidden = count < 3 || place > count;
    else if (choice) button.hidden = ["good", "bad"].includes(choice) ? count > 1 : count === 1 || (count > 2 && ["left", "right"].includes(choice));
  }
  at("both-bad").textContent = count > 2 ? "all bad" : "both bad";
  steps.begin(current ? current.criteria : []);
  if (current) {
    clock.start(seconds);
    draw(current, player);
    seen();
    window.scrollTo(0, 0);
  }
  comment.clear();
  enable();
  tell();
}

// All of the question can be seen from now on.
function seen() {
  shownAt = performance.now();
  clock.restart();
}

// While a clip is missing, a question can only be skipped.
function enable() {
  for (const button of buttons) button.disabled = button.id !== "undo" && !(current && (["skip", "remark"].includes(button.id) || player.ready));
}
player.changed = () => {
  if (player.ready) seen();
  enable();
};

function tell() {
  const mine = Math.max(0, Math.min(share, outbox.records.reduce((sum, { path, body }) => sum + counted(path, body), done - early)));
  const left = minutes === null || mine === share ? " answered" : `, about ${counting(minutes, "minute")} left`;
  at("progress").textContent = share ? `${mine} of your ${share}${left}` : "";
  at("done").hidden = !share;
  at("done").max = share || 1;
  at("done").value = mine;
  const none = problem ? `Some clips cannot be shown: ${problem}` : "There is nothing to compare right now. New questions appear here by themselves.";
  at("message").textContent = current ? "" : ended ? none : "One moment ...";
}

// By how much an answer that waits, or an undo, changes how many are answered.
function counted(path, { question }) {
  return path === "api/undo" ? -1 : again.has(question) ? 0 : 1;
}

function tooSoon() {
  return performance.now() - shownAt < SOON_MS;
}

function answer(choice, details = {}) {
  if (!current || tooSoon() || (choice !== "skip" && !player.ready)) return;
  if (steps.take(choice, details)) {
    shownAt = performance.now();
    return;
  }
  const { seconds } = clock;
  const reason = comment.text;
  comment.leave();
  const key = crypto.randomUUID ? crypto.randomUUID() : Array.from(crypto.getRandomValues(new Uint32Array(4)), String).join("-");
  const { id: question, lease, order, invitation } = current;
  const answered = { question, lease, order, invitation, choice, key, seconds, ...steps.body(choice) };
  at("refused").textContent = "";
  given = given.filter((last) => last.question.id !== question);
  given.push({ question: current, key });
  forget();
  outbox.add("api/answers", { ...answered, ...(reason ? { reason } : {}), ...details });
  tabs.postMessage(question);
  forward();
  more();
}

// What cannot be said of one side alone.
function compare(choice) {
  if (current && current.sides.length > 1) answer(choice);
}

function pick(place, slight) {
  const count = current.sides.length;
  if (count > 2) answer("place", { place });
  else if (count === 1) answer(["good", "bad"][place - 1]);
  else answer(["left", "right"][place - 1], slight ? { slight: true } : {});
}

// Of the questions that were answered the last ten are remembered, or fewer if they are long.
function forget() {
  given = given.slice(-10);
  while (given.length > 1 && JSON.stringify(given).length > LARGEST_PAST) given.shift();
}

async function undo() {
  if (back) {
    withdraw();
    return;
  }
  if (steps.undo() || undoing) return;
  undoing = true;
  const last = given.pop() || await lastAnswer();
  if (last) await outbox.add("api/undo", { question: last.question.id, ...(last.key ? { key: last.key } : {}) });
  undoing = false;
  if (!last) return;
  if (back) goBack();
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
  if (back && back.question && back.question.id === event.data) back.question = null;
  if (current && current.id === event.data) forward();
  more();
});

function skip(why) {
  const text = at("reason").value.trim();
  at("why").close();
  if (current && current.id === asked) answer("skip", { reason: [why, text].filter(Boolean).join(": ") });
  else at("refused").textContent = "Nothing was skipped: that question was answered in another tab.";
}

function askWhy() {
  if (!current || tooSoon()) return;
  asked = current.id;
  at("reason").value = comment.text;
  at("why").showModal();
}

const reasons = [...document.querySelectorAll("[data-reason]")];
for (const button of reasons) button.addEventListener("click", () => skip(button.dataset.reason));
at("stay").addEventListener("click", () => at("why").close());

function keyInDialog(event) {
  if (event.isComposing) return;
  const typing = event.target === at("reason");
  if (event.key === "Enter" && (typing || event.target.tagName !== "BUTTON")) skip("");
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
  if (document.querySelector("dialog[open]") || event.target.matches("select, input:not([type=range])")) return;
  const key = event.key.toLowerCase();
  const digit = Number((event.code.match(/^(?:Digit|Numpad)([1-8])$/) || key.match(/^([1-8])$/) || [])[1]);
  if (key === " " && ["BUTTON", "SUMMARY"].includes(event.target.tagName)) return;
  if (digit && current && digit <= Math.max(2, current.sides.length)) pick(digit, event.shiftKey);
  else if (Object.hasOwn(commands, key)) commands[key]();
  else return;
  event.preventDefault();
});
for (const button of buttons) {
  const { choice, slight, place } = button.dataset;
  if (place) button.addEventListener("click", () => pick(Number(place)));
  else if (choice) button.addEventListener("click", () => answer(choice, slight === undefined ? {} : { slight: true }));
}
document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-command]");
  if (button) commands[button.dataset.command]();
});

document.addEventListener("DOMContentLoaded", () => {  // when all files have been read
  show();
  outbox.flush();
});
