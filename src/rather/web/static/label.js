// An answer never waits for the network: it goes into the outbox, which the browser keeps, and from there to the server, in order,
// again and again until the server has acknowledged it. The next question is fetched while this one is being read.
"use strict";

const token = document.querySelector('meta[name="rather-token"]').content;
const name = document.querySelector('meta[name="rather-name"]').content;
const at = (id) => document.getElementById(id);
const buttons = document.querySelectorAll("nav button");
const choices = { 1: "left", 2: "right", "=": "tie", b: "both_bad", s: "skip" };
const place = `rather-outbox:${name}`;

let outbox = JSON.parse(localStorage.getItem(place) || "[]");
let current = null;   // the question on the screen
let ahead = null;     // the one after it
let given = [];       // answered questions, for undo
let shownAt = 0;
let done = 0;         // answers that the server has, as it said
let total = 0;
let sending = false;
let fetching = false;
let ended = false;    // the server had no more questions
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
    if (found.question) ahead = found.question;
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
  for (const button of buttons) button.disabled = !current && button.id !== "undo";
  if (current) {
    at("prompt").innerHTML = current.prompt;  // made safe by the server: Markdown through an allow-list
    for (const side of ["left", "right"]) {
      at(side).innerHTML = current[side].map((answer) => `<div>${answer.html}${answer.cut ? '<span class="cut">...</span>' : ""}</div>`).join("<hr>");
    }
    shownAt = performance.now();
    window.scrollTo(0, 0);
  }
  tell();
}

function tell() {
  at("progress").textContent = total ? `${Math.min(done + outbox.length, total)} of ${total} answered` : "";
  at("message").textContent = current ? "" : ended ? "There is nothing to compare right now. New questions appear here by themselves." : "One moment ...";
}

function answer(choice) {
  if (!current) return;
  const seconds = Math.min((performance.now() - shownAt) / 1000, 86400);
  const key = crypto.randomUUID ? crypto.randomUUID() : Array.from(crypto.getRandomValues(new Uint32Array(4)), String).join("-");
  outbox.push({ path: "/api/answers", body: { question: current.id, choice, key, seconds } });
  given.push(current);
  keep();
  forward();
  send();
  more();
}

function undo() {
  const question = given.pop();
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

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  const key = event.key.toLowerCase();
  if (key === "u") undo();
  else if (choices[key]) answer(choices[key]);
  else return;
  event.preventDefault();
});
for (const button of buttons) button.addEventListener("click", () => (button.id === "undo" ? undo() : answer(button.dataset.choice)));

keep();
show();
send().then(more);
