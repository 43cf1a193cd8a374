// The person's own answers, the latest first: each can be looked at, changed or withdrawn, wherever it was given.
"use strict";

{
  const dialog = at("own");
  const list = at("own-list");
  const older = at("older");
  let last = 0;   // the number of the oldest answer in the list
  let turn = 0;   // of what was asked for last

  const say = (text) => { at("own-message").textContent = text; };

  const sentence = (error) => error.status ? error.message : "The server cannot be reached; try again in a moment.";

  const inWords = ({ choice, slight, place, sides, reason, criteria, better: own }) => {
    const better = slight ? " is a little better" : " is better";
    const words = {
      left: () => [...named("left"), better], right: () => [...named("right"), better], place: () => [`${place} is best`],
      tie: () => ["tie"], both_bad: () => [sides > 2 ? "all bad" : "both bad"], skip: () => ["skipped"],
      good: () => ["good"], bad: () => ["bad"],
    }[choice]();
    for (const [name, said] of Object.entries(criteria)) words.push("; ", drawn("bdi", "", name), ": ", ...inShort(said));
    if (reason && !(choice === "skip" && reason === "skipped")) words.push(`: ${reason}`);
    if (own) words.push(`; better: ${own}`);
    return words;
  };

  const when = (answer) => new Date(1000 * answer.created).toLocaleString();

  const row = (answer) => {
    const begins = drawn("bdi", "begins", answer.beginning || `clips, question ${answer.question}`);
    const waits = outbox.questions.includes(answer.question) ? ", a change is on its way to the server" : "";
    const button = drawn("button", "", begins, drawn("span", "said", ...inWords(answer)), drawn("span", "soft", when(answer) + waits));
    button.type = "button";
    button.addEventListener("click", () => look(answer));
    return drawn("li", "", button);
  };

  const look = async (answer) => {
    try {
      const question = await call(`api/questions/${answer.question}`);
      if (!dialog.open) return;
      dialog.close();
      visit(question, answer.choice === "skip" ? "" : answer.reason, answer.criteria);
      at("earlier-what").replaceChildren("Your answer, ", when(answer), ": ", ...inWords(answer),
        answer.better ? ". Answer again to change it; the better answer goes unless you write it again." : ". Answer again to change it.");
      at("return").focus();
    } catch (error) {
      say(error.status === 404 ? "This answer cannot be changed here any more: how it was shown is not known." : sentence(error));
    }
  };

  const load = async (address) => {
    const mine = ++turn;
    older.hidden = true;
    say("One moment ...");
    try {
      const { answers } = await call(address);
      if (mine !== turn) return;
      list.append(...answers.map(row));
      last = answers.length ? answers[answers.length - 1].label : last;
      older.hidden = answers.length < 50;
      const waiting = outbox.length ? ` ${outbox.length} kept here until the server has them.` : "";
      say((list.children.length ? "" : "You have given no answer yet.") + waiting);
      return answers.length;
    } catch (error) {
      if (mine === turn) say(sentence(error));
      older.hidden = !list.children.length;
    }
  };

  commands.l = () => {
    list.replaceChildren();
    clock.open(dialog);
    load("api/answers");
  };
  older.addEventListener("click", async () => {
    const first = list.children.length;
    await load(`api/answers?before=${last}`);
    list.children[first]?.firstElementChild.focus();
  });
  at("return").addEventListener("click", goBack);
  at("withdraw").addEventListener("click", withdraw);
}
