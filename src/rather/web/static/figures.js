// The owner's charts: what happened over time, and what the learner measures.
"use strict";

const SPANS = { 60: "minute", 300: "5 minutes", 900: "15 minutes", 3600: "hour", 21600: "6 hours", 86400: "day", 604800: "week", 2419200: "4 weeks", 31449600: "52 weeks" };

function figure(place, number) {
  while (place.children.length <= number) place.append(document.createElement("figure"));
  return place.children[number];
}

function plots(place, specs) {
  specs.forEach((spec, number) => plot(figure(place, number), spec));
  while (place.children.length > specs.length) place.lastChild.remove();
}

const sums = (counts) => counts.map(((sum) => (count) => (sum += count))(0));

function overTime(found, questions) {
  at("over-time-section").hidden = !found;
  if (!found) return;
  const { start, span_s: span, count, people, others, completed, agreement } = found;
  const begins = Array.from({ length: count }, (_, i) => start + i * span), each = SPANS[span] ?? `${(span / 86400).toFixed(1)} days`;
  const ends = (values) => values.map((value, i) => [begins[i] + span, value]);
  const total = people.reduce((sum, p) => sum.map((n, i) => n + p.answers[i]), others);
  const named = [...people, ...(others.some(Boolean) ? [{ name: "all others", answers: others }] : [])];
  plots(at("over-time"), [
    { title: `Answers each ${each}`, series: [{ name: "answers", points: total.map((n, i) => [begins[i], n]) }], time: true, bars: span },
    { title: "Answers of each person so far", series: named.map((p) => ({ name: p.name, points: ends(sums(p.answers)) })), time: true, whole: true },
    { title: "Questions that have all their answers", series: [{ name: "share", points: ends(sums(completed).map((n) => n / Math.max(questions, 1))) }], time: true, percent: true, whole: true },
    { title: `Pairs of answers that agree, each ${each}`, series: [{ name: "share", points: ends(agreement) }], time: true, percent: true, whole: true },
  ]);
}

let alarms = "[]", exploited = "[]";

function gained({ prompt, before, after, proxy, gold }) {
  const sides = [["base model", before], ["hacked policy", after]].map(([name, text], i) => {
    const side = element("div", "", "side");
    const rewards = [`proxy ${proxy[i].toFixed(2)}`, ...(gold ? [`gold ${gold[i].toFixed(2)}`] : [])].join(", ");
    side.append(element("p", `${name}: ${rewards}`, "note"), element("div", text, "plain"));
    return side;
  });
  const pair = element("div", "", "sides"), made = element("div");
  pair.append(...sides);
  made.append(element("p", prompt, "prompt plain"), pair);
  return made;
}

async function curves() {
  if (at("overview").hidden) return;
  try {
    const found = await call("api/owner/curves");
    at("curves-section").hidden = !at("predicted") && !found.plots.length && !found.problem;
    if (at("predicted") && found.predicted) at("predicted").textContent = `Reward head: ${found.predicted}.`;
    if (JSON.stringify(found.alarms) !== alarms) at("alarms").replaceChildren(...found.alarms.map((alarm) => element("li", alarm)));
    alarms = JSON.stringify(found.alarms);  // a screen reader says it once
    at("exploited-section").hidden = !found.exploited.length;
    if (JSON.stringify(found.exploited) !== exploited) at("exploited").replaceChildren(...found.exploited.map(gained));
    exploited = JSON.stringify(found.exploited);
    at("curves-problem").textContent = found.problem;
    plots(at("curves"), found.plots);
  } catch (error) {
    at("curves-section").hidden = false;
    at("curves-problem").textContent = error.message;
  }
}

curves();
setInterval(curves, 5000);
