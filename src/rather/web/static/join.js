// The secret of an invite link stands behind its #, which browsers send to nobody: this page hands it to the server itself.
"use strict";

const secret = location.hash.slice(1);
history.replaceState(null, "", location.pathname);  // not into the history, nor over anybody's shoulder
addEventListener("hashchange", () => location.reload());  // another link was opened in this tab

function say(title, message) {
  document.getElementById("title").textContent = title;
  document.getElementById("message").textContent = message;
}

async function join() {
  if (!secret) {
    say("This page needs your invite link", "Open the link that you were given, whole; what stands behind its # belongs to it.");
    return;
  }
  try {
    const answer = await fetch("api/join", {
      method: "POST", body: JSON.stringify({ secret }), headers: { "Content-Type": "application/json" },
    });
    const said = await answer.json();
    if (answer.ok) location.replace(said.page);
    else say("This link does not hold", typeof said.detail === "string" ? said.detail : `The server says ${answer.status}.`);
  } catch (error) {
    say("The server cannot be reached", "Open the link again in a moment.");
  }
}

join();
