// All clips of a question play in step: one clock, drawn frame by frame from picture sheets.
"use strict";

class Player {
  constructor() {
    this.at = (id) => document.getElementById(id);
    this.clips = [];
    this.time = 0;       // milliseconds into the clips
    this.playing = false;
    this.before = 0;
    this.at("play").addEventListener("click", () => this.toggle());
    this.at("back").addEventListener("click", () => this.step(-1));
    this.at("on").addEventListener("click", () => this.step(1));
    this.at("scrub").addEventListener("input", (event) => { this.pause(); this.seek(Number(event.target.value) * this.frame); });
    requestAnimationFrame((now) => this.tick(now));
  }

  // A canvas for one clip; it is drawn as soon as its picture has come.
  canvas(clip, label) {
    const made = document.createElement("canvas");
    made.width = clip.width;
    made.height = clip.height;
    made.setAttribute("role", "img");
    made.setAttribute("aria-label", label);
    const picture = new Image();
    picture.addEventListener("load", () => { made.dataset.ready = "yes"; this.draw(); });
    picture.addEventListener("error", () => made.setAttribute("aria-label", `${label}: could not be loaded`));
    picture.src = clip.url;
    this.clips.push({ ...clip, picture, canvas: made });
    return made;
  }

  clear() {
    this.clips = [];
    this.time = 0;
    this.at("player").hidden = true;
  }

  // After all canvases are there: from the beginning, at once unless the reader wants little motion.
  start() {
    if (!this.clips.length) return;
    this.frame = Math.min(...this.clips.map((clip) => clip.milliseconds));
    this.length = Math.max(...this.clips.map((clip) => clip.milliseconds * clip.frames));
    this.at("scrub").max = Math.ceil(this.length / this.frame) - 1;
    this.at("player").hidden = false;
    this.set(!matchMedia("(prefers-reduced-motion: reduce)").matches);
    this.seek(0);
  }

  set(playing) {
    this.playing = playing;
    this.at("play").querySelector("span").textContent = playing ? "pause" : "play";
  }

  pause() { this.set(false); }

  toggle() { if (this.clips.length) this.set(!this.playing); }

  step(frames) {
    if (!this.clips.length) return;
    this.pause();
    this.seek((Math.round(this.time / this.frame) + frames) * this.frame);
  }

  seek(time) {
    this.time = Math.max(0, Math.min(time, this.length - this.frame));
    this.at("scrub").value = Math.round(this.time / this.frame);
    this.draw();
  }

  tick(now) {
    const passed = Math.min(now - this.before, 250) * Number(this.at("speed").value);
    this.before = now;
    if (this.playing && this.clips.length) {
      const next = this.time + passed;
      this.time = next >= this.length ? 0 : next;
      this.at("scrub").value = Math.floor(this.time / this.frame);
      this.draw();
    }
    requestAnimationFrame((later) => this.tick(later));
  }

  draw() {
    for (const clip of this.clips) {
      const frame = Math.min(Math.floor(this.time / clip.milliseconds + 1e-6), clip.frames - 1);
      if (!clip.canvas.dataset.ready || clip.canvas.dataset.frame === String(frame)) continue;
      const [x, y] = [(frame % clip.columns) * clip.width, Math.floor(frame / clip.columns) * clip.height];
      clip.canvas.getContext("2d").drawImage(clip.picture, x, y, clip.width, clip.height, 0, 0, clip.width, clip.height);
      clip.canvas.dataset.frame = frame;
    }
  }
}
