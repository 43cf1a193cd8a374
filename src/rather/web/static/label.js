// An answer never waits for the network: it goes into the outbox, which the browser keeps, and from there to the server, in order,
// again and again until the server has acknowledged it. The next question is fetched while this one is being read.
"use strict";

const token = document.querySelector('meta[name="rather-token"]').content;
const name = document.querySelector('meta[name="rather-name"]').content;
const at = (id) => document.getElementById(id);
const buttons = document.querySelectorAll("nav button:not(#more)");
const choices = { "=": "tie", b: "both_bad" };
const place = `rather-outbox:${name}`;
const past = `rather-seen:${name}`;
const player = new Player();

let outbox = JSON.parse(localStorage.getItem(place) || "[]");
let current = null;   // the question on the screen
let ahead = null;     // the one after it
let given = JSON.parse(sessionStorage.getItem(past) || "[]");  // the last answered questions, for undo
let shownAt = 0;
let done = 0;         // answers that the server has, as it said
let total = 0;
let sending = false;
let fetching = false;
let ended = false;    // the server had no more questions
let problem = "";     // why clips could not be drawn, if there is no question
let timer = 0;        // when to ask again

function keep() {
  localStorage.setItem(place, JSON.stringify(outbox));
  at("kept").textContent = outbox.length ? `${outbox.length} kept here until the server has them` : "";
}

async function call(path, body) {
  const options = body ? {
    method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json", "X-Rather-Token": token },
  } : {};
  const answer = await fetch(path, { ...options, signal: AbortSignal.timeout(10000) });
  if (answer.ok) return answer.json();
  const said = await answer.json().catch(() => ({}));
  const error = new Error(typeof said.detail === "string" ? said.detail : `the server says ${answer.status}`);
  error.status = answer.status;
  throw error;
}

async function send() {
  if (sending) return;
  sending = true;
  while (outbox.length) {
    const { path, body } = outbox[0];
    try {
      await call(path, body);
      outbox.shift();
      keep();
    } catch (error) {
      if (error.status === 404 || error.status === 422) {  // the question is gone, or this is no answer: it will never be taken
        outbox.shift();
        keep();
        at("message").textContent = error.message;
        continue;
      }
      if (error.status === 401 || error.status === 403) {
        at("message").textContent = `${error.message} Your answers are kept in this browser.`;
      }
      await new Promise((resolve) => setTimeout(resolve, 1000));
    }
  }
  sending = false;
  more();
}

async function more() {
  if (fetching || (current && ahead)) return;
  fetching = true;
  const held = [current, ahead].filter(Boolean).map((q) => q.id).concat(outbox.map((entry) => entry.body.question));
  try {
    const found = await call("/api/next?" + held.map((id) => `held=${id}`).join("&"));
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
    at("message").textContent = error.status === 401 ? error.message : current ? "" : "Waiting for the connection ...";
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
player.changed = enable;

function tell() {
  at("progress").textContent = total ? `${Math.min(done + outbox.length, total)} of ${total} answered` : "";
  const none = problem ? `Some clips cannot be shown: ${problem}` : "There is nothing to compare right now. New questions appear here by themselves.";
  at("message").textContent = current ? "" : ended ? none : "One moment ...";
}

function answer(choice, details = {}) {
  if (!current || (choice !== "skip" && !player.ready)) return;
  const seconds = Math.min((performance.now() - shownAt) / 1000, 86400);
  const key = crypto.randomUUID ? crypto.randomUUID() : Array.from(crypto.getRandomValues(new Uint32Array(4)), String).join("-");
  outbox.push({ path: "/api/answers", body: { question: current.id, choice, key, seconds, ...details } });
  given.push(current);
  remember();
  keep();
  forward();
  send();
  more();
}

function pick(place, slight) {
  if (current.sides.length > 2) answer("place", { place });
  else answer(["left", "right"][place - 1], slight ? { slight: true } : {});
}

function remember() {
  given = given.slice(-10);
  sessionStorage.setItem(past, JSON.stringify(given));
}

function undo() {
  const question = given.pop();
  remember();
  if (!question) {
    at("message").textContent = "There is nothing to undo.";
    return;
  }
  const last = outbox[outbox.length - 1];
  if (last && last.path === "/api/answers" && last.body.question === question.id && !(sending && outbox.length === 1)) outbox.pop();
  else outbox.push({ path: "/api/undo", body: { question: question.id } });
  keep();
  ahead = current || ahead;
  current = question;
  show();
  send();
}

function skip(reason) {
  at("why").close();
  answer("skip", { reason });
}

function askWhy() {
  if (!current) return;
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

keep();
show();
send().then(more);
