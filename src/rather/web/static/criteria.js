// Preferences on criteria beside the whole: the same keys and buttons answer one after the other, and the whole last, which sends.
"use strict";

const inShort = ({ choice, slight }) => choice === "tie" ? ["tie"] : [...named(choice), slight ? ", a little" : ""];

// A row above the buttons: what is asked now, and a chip for each step with what was said; a click on one goes back to it.
class Steps {
  constructor() {
    this.row = document.getElementById("steps");
    this.asked = document.getElementById("asked");
    this.list = document.getElementById("chips");
    this.begin([]);
  }

  // `said` holds, by number, what was said on each criterion.
  begin(names, said = []) {
    Object.assign(this, { names, said: [...said], at: 0 });
    this.at = this.first;
    this.chips = names.length ? [...names, "overall"].map((name, step) => this.chip(name, step)) : [];
    this.row.hidden = !names.length;
    this.list.replaceChildren(...this.chips.map(({ button }) => drawn("li", "", button)));
    this.draw();
  }

  // The first step on which nothing was said; the whole comes after all criteria.
  get first() {
    const step = this.names.findIndex((_, i) => !this.said[i]);
    return step < 0 ? this.names.length : step;
  }

  chip(name, step) {
    const said = drawn("span", "");
    const button = drawn("button", "chip", drawn("bdi", "", name), said);
    button.type = "button";
    button.addEventListener("click", () => this.go(step));
    return { button, said };
  }

  go(step) {
    this.at = step;
    this.draw();
  }

  // Take an answer as that to a criterion, if one is asked; what is no comparison is about the whole.
  take(choice, { slight = false }) {
    if (this.at === this.names.length || !["left", "right", "tie"].includes(choice)) return false;
    const answered = this.at;
    this.said[answered] = { choice, slight };
    this.at = this.first;
    this.draw(answered);
    return true;
  }

  // One step back; false at the first one.
  undo() {
    if (this.at === 0 && !this.said[0]) return false;
    if (this.at > 0) this.at -= 1;
    delete this.said[this.at];
    this.draw();
    return true;
  }

  // What an answer to the whole says beside it.
  body(choice) {
    const said = this.names.map((name, i) => [name, this.said[i]]).filter(([, x]) => x);
    return said.length && choice !== "skip" ? { criteria: Object.fromEntries(said) } : {};
  }

  // Screen readers read out what was said on step `answered`, and what is asked now.
  draw(answered) {
    this.chips.forEach(({ button, said }, step) => {
      said.replaceChildren(...(this.said[step] ? [": ", ...inShort(this.said[step])] : []));
      button.disabled = step > this.first;
      if (step === this.at) button.setAttribute("aria-current", "step");
      else button.removeAttribute("aria-current");
    });
    const name = this.names[this.at];
    const now = name === undefined ? ["Which is better overall?"] : ["Which is more: ", drawn("bdi", "", name), "?"];
    const before = answered === undefined ? [] : [drawn("span", "heard", this.names[answered], ": ", ...inShort(this.said[answered]), ". ")];
    this.asked.replaceChildren(...(this.chips.length ? [...before, ...now] : []));
    this.chips[this.at]?.button.scrollIntoView({ block: "nearest", inline: "nearest" });
  }
}
