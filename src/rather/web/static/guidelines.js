// The owner's guidelines: before the first question until the person has said in this browser that they have read them, and whenever asked for.
"use strict";

if (at("guidelines")) {
  const dialog = at("guidelines");
  const { version, answered } = dialog.dataset;
  const name = `rather-guidelines:${document.baseURI}:${meta("person")}`;

  const read = () => {
    try {
      const known = localStorage.getItem(name);
      localStorage.setItem(name, known || "");  // fails where nothing can be kept
      return known === version;
    } catch (error) {
      return answered === "yes";
    }
  };

  commands.g = () => {
    clock.open(dialog);
    fit();
  };
  at("have-read").addEventListener("click", () => {
    try {
      localStorage.setItem(name, version);
    } catch (error) {
      // then they are shown again next time, if there is no answer by then
    }
    dialog.close();
  });
  dialog.addEventListener("close", () => {
    at("have-read").textContent = "close";
    reading = false;
    more();
  });
  if (!read()) {
    reading = true;
    at("have-read").textContent = "I have read this";
    commands.g();
  }
}
