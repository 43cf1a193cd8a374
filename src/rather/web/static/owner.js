"use strict";

const token = document.querySelector('meta[name="rather-token"]').content;
const at = (id) => document.getElementById(id);

async function call(path, method = "GET", body = undefined) {
  const headers = { "Content-Type": "application/json", "X-Rather-Token": token };
  const answer = await fetch(path, { method, headers, body: body && JSON.stringify(body) });
  const said = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(typeof said.detail === "string" ? said.detail : `the server says ${answer.status}`);
  return said;
}

function cell(text, kind = "") {
  const made = document.createElement("td");
  made.textContent = text;
  made.className = kind;
  return made;
}

async function show() {
  const found = await call("/api/people");
  at("totals").textContent = `${found.questions} questions, ${found.answers} answers; each question wants ${found.overlap}`;
  at("people").replaceChildren(...found.people.map((person) => {
    const row = document.createElement("tr");
    row.append(cell(person.name), cell(person.role), cell(person.answers, "n"));
    const last = cell("");
    if (person.role !== "owner") {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = `Revoke ${person.name}`;
      button.addEventListener("click", async () => {
        await call(`/api/people/${encodeURIComponent(person.name)}`, "DELETE");
        await show();
      });
      last.append(button);
    }
    row.append(last);
    return row;
  }));
}

at("invite").addEventListener("submit", async (event) => {
  event.preventDefault();
  try {
    const name = at("name").value;
    const { link } = await call("/api/people", "POST", { name });
    at("link").textContent = `${name}'s link, shown this once: ${location.origin}${link}`;
    at("name").value = "";
    await show();
  } catch (error) {
    at("link").textContent = error.message;
  }
});

show();
setInterval(show, 5000);
