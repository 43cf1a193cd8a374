// Draws a question: its prompt and its sides, words or clips. All HTML here was made safe by the server: Markdown through an allow-list.
"use strict";

const drawn = (kind, name, ...inside) => {
  const element = document.createElement(kind);
  element.className = name;
  element.append(...inside);
  return element;
};

// Which side, in the words of the page: sides stand beside each other, or on a phone one under the other. The style sheet hides one word.
const SIDES = { left: ["left", "upper"], right: ["right", "lower"] };
const named = (choice) => SIDES[choice].map((word, i) => drawn("span", ["beside", "below"][i], word));

function draw(question, player) {
  document.getElementById("prompt").innerHTML = question.prompt;
  player.clear();
  document.getElementById("sides").replaceChildren(...question.sides.map((trajectories, index) => drawnSide(trajectories, index, question, player)));
  player.start();
  fit();
}

// The owner sees sides under their `letters`.
function drawnSide(trajectories, index, { sides, letters }, player) {
  const name = letters ? letters[index] : index + 1;
  const heading = drawn("h2", "", sides.length === 1 && !letters ? "This one" : `${name} `);
  if (sides.length === 2 && !letters) heading.append(...named(["left", "right"][index]));
  heading.id = `name-${index + 1}`;
  const words = drawn("div", trajectories.length > 1 ? "words batch" : "words");
  words.id = `side-${index + 1}`;
  words.append(...trajectories.map((trajectory, i) => drawnTrajectory(trajectory, `side ${name}, clip ${i + 1} of ${trajectories.length}`, player)));
  const side = drawn("section", "side", heading, words);
  side.setAttribute("aria-labelledby", heading.id);
  return side;
}

function drawnTrajectory(trajectory, label, player) {
  if (trajectory.clip) return player.canvas(trajectory.clip, label);
  const words = drawn("div", "trajectory");
  words.innerHTML = trajectory.html;
  if (trajectory.cut) words.append(drawn("p", "note cut", "This answer was cut off here."));
  if (trajectory.prompt) {
    const asked = drawn("div", "prompt");
    asked.innerHTML = trajectory.prompt;
    words.prepend(asked);
  }
  return words;
}

// What is wider than its place scrolls in itself, and can be reached with the keyboard.
function fit() {
  for (const formula of document.querySelectorAll(":is(#question, #guidelines) .math")) {
    const wide = formula.firstElementChild.getBoundingClientRect().width > formula.closest("[dir]").clientWidth;
    formula.classList.toggle("scroll", wide || formula.classList.contains("display"));
  }
  for (const place of document.querySelectorAll(":is(#question, #guidelines) .scroll")) {
    const scrolls = place.scrollWidth > place.clientWidth;
    const name = place.classList.contains("math") ? "formula" : place.tagName === "PRE" ? "code" : "table";
    for (const [key, value] of [["tabindex", 0], ["role", "region"], ["aria-label", `wide ${name}`]]) {
      if (scrolls) place.setAttribute(key, value);
      else place.removeAttribute(key);
    }
  }
}
addEventListener("resize", fit);
document.getElementById("question").addEventListener("toggle", fit, true);

// On a phone, what is rare folds away.
for (const more of document.querySelectorAll(".menu")) {
  const bar = more.parentElement;
  const unfold = (open) => {
    more.setAttribute("aria-expanded", open);
    bar.classList.toggle("unfolded", open);
  };
  more.addEventListener("click", () => unfold(more.getAttribute("aria-expanded") !== "true"));
  bar.addEventListener("click", (event) => { if (event.target.closest("button") !== more) unfold(false); });
  bar.hidden = false;
}
