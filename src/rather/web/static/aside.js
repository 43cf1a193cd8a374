// What stands beside the question: dialogs that are no answer to it, the time that it is looked at, and a comment.
"use strict";

// Seconds that the question has been looked at: not those in which a dialog of class "aside" is open.
class Clock {
  constructor() {
    this.start();
    for (const dialog of document.querySelectorAll("dialog.aside")) dialog.addEventListener("close", () => this.go());
  }

  start(seconds = 0) {
    this.before = seconds;
    this.restart();
  }

  // What has passed since the question was shown does not count.
  restart() {
    this.since = document.querySelector("dialog.aside[open]") ? null : performance.now();
  }

  get seconds() { return this.before + (this.since === null ? 0 : (performance.now() - this.since) / 1000); }

  stop() {
    this.before = this.seconds;
    this.since = null;
  }

  go() { if (this.since === null) this.since = performance.now(); }

  // Open a dialog while the clock stands still.
  open(dialog) {
    this.stop();
    dialog.showModal();
  }
}

// A comment that goes with the next answer: a field in the bar, there while it is open or holds something.
class Comment {
  constructor() {
    this.field = document.getElementById("comment");
    this.row = this.field.parentElement;
    this.field.addEventListener("keydown", (event) => {
      if (["Enter", "Escape"].includes(event.key)) this.leave();
      else if (event.key === "Tab" || event.isComposing) return;
      event.stopPropagation();
    });
    this.field.addEventListener("blur", () => this.close());
  }

  get text() { return this.field.value.trim(); }

  open() {
    this.row.hidden = false;
    this.field.focus();
  }

  leave() { this.field.blur(); }

  close() {
    this.field.readOnly = false;
    this.field.placeholder = "";
    this.row.hidden = !this.text;
  }

  set(text) {
    if (this.field.readOnly) return;
    this.field.value = text;
    this.close();
  }

  // Another question is shown: what was written is not about it, and what is still being typed goes nowhere.
  clear() {
    this.field.value = "";
    if (document.activeElement !== this.field) {
      this.close();
      return;
    }
    this.field.readOnly = true;
    this.field.placeholder = "Your comment is gone: that question was answered in another tab. Esc goes on.";
  }
}

function counting(number, what) {
  return `${number} ${what}${number === 1 ? "" : "s"}`;
}
