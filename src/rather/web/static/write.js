// A better answer, where none is good enough: written in a dialog, it goes with the answer that all are bad. What was typed is kept, by
// question, while the page is hidden or the dialog closed, and after an undo.
"use strict";

{
  const dialog = at("writing");
  const field = at("better");
  const button = at("write");
  const drafts = new Map();  // by question
  let about = 0;             // the question that is written about

  const possible = () => current && current.sides.length > 1 && current.sides.length < 8
    && current.sides.every((trajectories) => trajectories.length === 1 && trajectories[0].text !== undefined);

  const open = () => {
    if (!possible() || tooSoon()) return;
    about = current.id;
    field.value = drafts.get(about) || "";
    at("writing-message").textContent = "";
    clock.open(dialog);
    field.focus();
  };

  const refusal = (text) => {
    if (!text.trim()) return "Nothing is written yet.";
    if (current.sides.some(([trajectory]) => trajectory.text.trim() === text.trim())) return "That is one of the answers above: change it, or prefer that one.";
    return "";
  };

  const send = () => {
    const gone = !current || current.id !== about;
    const message = gone ? "That question was answered in another tab: copy what you want to keep." : refusal(field.value);
    at("writing-message").textContent = message;
    if (message) return;
    dialog.close();
    answer("both_bad", { better: field.value });
  };

  field.addEventListener("input", () => {
    drafts.set(about, field.value);
    while (drafts.size > 10) drafts.delete(drafts.keys().next().value);
  });
  field.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !event.isComposing) {
      event.preventDefault();
      send();
    }
  });
  commands.w = open;
  at("send-better").addEventListener("click", send);
  new MutationObserver(() => { button.hidden = !possible(); }).observe(at("question"), { attributeFilter: ["data-number", "hidden"] });
}
