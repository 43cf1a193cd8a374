// Links of people: made here, shown until the next one is made, copied. And the owner's way out.
"use strict";

// Whoever has a link gets a new one only if the owner means it: the old one ends with it.
async function invite(name) {
  try {
    return await call("api/people", "POST", { name });
  } catch (error) {
    if (error.status !== 409 || !error.message.includes("(renew)")) throw error;
    if (!confirm(`${name} has a link already. End it, and make a new one?`)) return undefined;
    return call("api/people", "POST", { name, renew: true });
  }
}

at("invite").addEventListener("submit", async (event) => {
  event.preventDefault();
  const name = at("name").value, say = (text) => { at("people-said").textContent = text; };
  say("");
  try {
    const made = await invite(name);
    if (!made) {
      say(`${name} keeps the link that they have.`);
      return;
    }
    at("link").value = new URL(made.link, document.baseURI);
    at("link-of").textContent = `${name}'s link`;
    at("made").hidden = false;
    at("name").value = "";
    say(`${name}'s link stands below. It is shown this once, until you make another: send it to them.`);
    await show();
  } catch (error) {
    say(error.message);
  }
});

// Browsers let a page copy by itself only where it is secure.
at("copy").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText(at("link").value);
    at("people-said").textContent = "The link is copied.";
  } catch (error) {
    at("link").select();
    at("people-said").textContent = "The link is selected: press Ctrl-C to copy it.";
  }
});

at("log-out").addEventListener("click", async () => {
  if (!confirm("Log out? To come back you need your own link again.")) return;
  try {
    location.replace((await call("api/leave", "POST")).page);
  } catch (error) {
    if (error.status === 401) location.replace("left");
    else alert(`You are not logged out: ${error.message}`);
  }
});
