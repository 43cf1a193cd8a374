// Logging out: answers that wait are kept in this browser and go out when the person comes back, but not what the browser has no room for.
"use strict";

{
  const dialog = at("leaving");

  const leave = async () => {
    dialog.close();
    try {
      location.replace((await call("api/leave", {})).page);
    } catch (error) {
      if (error.status === 401) location.replace("left");  // the link does not hold any more: nobody is logged in
      else at("refused").textContent = `You are not logged out: ${error.status ? error.message : "the server cannot be reached"}.`;
    }
  };

  at("log-out").addEventListener("click", () => {
    const { memory, length } = outbox;
    if (!length) {
      leave();
      return;
    }
    const waiting = `${counting(length, "answer")} ${length === 1 ? "has" : "have"}`;
    at("leaving-what").textContent = `${waiting} not reached the server yet. ` + (memory.length
      ? "This browser has no room to keep answers: if you log out now, this is lost."
      : `${length === 1 ? "It is" : "They are"} kept in this browser, and sent when you come back by your link.`);
    clock.open(dialog);
  });
  at("leave").addEventListener("click", leave);
}
