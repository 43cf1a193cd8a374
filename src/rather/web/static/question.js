// Draws a question: its prompt and its sides, words or clips. All HTML here was made safe by the server: Markdown through an allow-list.
"use strict";

function draw(question, player) {
  document.getElementById("prompt").innerHTML = question.prompt;
  player.clear();
  const count = question.sides.length;
  document.getElementById("sides").replaceChildren(...question.sides.map((attempts, index) => drawnSide(attempts, index, count, player)));
  player.start();
}

function drawnSide(attempts, index, count, player) {
  const name = count > 2 ? `side ${index + 1}` : ["left", "right"][index];
  const [side, heading, words] = ["section", "h2", "div"].map((kind) => document.createElement(kind));
  side.className = "side";
  side.setAttribute("aria-label", name);
  heading.textContent = index + 1;
  words.id = `side-${index + 1}`;
  words.className = attempts.length > 1 ? "words batch" : "words";
  words.replaceChildren(...attempts.map((attempt, i) => drawnAttempt(attempt, `${name} clip ${i + 1} of ${attempts.length}`, player)));
  side.append(heading, words);
  return side;
}

function drawnAttempt(attempt, label, player) {
  if (attempt.clip) return player.canvas(attempt.clip, label);
  const words = document.createElement("div");
  words.className = "attempt";
  words.innerHTML = attempt.html;
  if (attempt.cut) words.insertAdjacentHTML("beforeend", '<span class="cut">...</span>');
  if (attempt.prompt) {
    const asked = document.createElement("div");
    asked.className = "prompt";
    asked.innerHTML = attempt.prompt;
    words.prepend(asked);
  }
  return words;
}
