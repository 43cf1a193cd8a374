// All clips of a question play in step: one clock, drawn frame by frame from picture sheets. `changed` is called when `ready` changes.
"use strict";

class Player {
  constructor() {
    this.at = (id) => document.getElementById(id);
    this.clips = [];
    this.time = 0;       // milliseconds into the clips
    this.playing = false;
    this.before = 0;
    this.changed = () => {};
    this.at("play").addEventListener("click", () => this.toggle());
    this.at("back").addEventListener("click", () => this.step(-1));
    this.at("on").addEventListener("click", () => this.step(1));
    this.at("scrub").addEventListener("input", (event) => { this.pause(); this.seek(Number(event.target.value) * this.frame); });
    this.at("retry").addEventListener("click", () => this.retry());
    addEventListener("online", () => this.retry());
    requestAnimationFrame((now) => this.tick(now));
  }

  // Whether every clip can be seen: before that, nobody can say which is better.
  get ready() { return this.clips.every((clip) => clip.state === "ready"); }

  // A place for one clip; it is drawn as soon as its picture has come, and says so if that fails.
  canvas(clip, label) {
    const [place, canvas, failed] = ["div", "canvas", "p"].map((kind) => document.createElement(kind));
    place.className = "clip";
    canvas.width = clip.width;
    canvas.height = clip.height;
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", label);
    failed.className = "note";
    failed.textContent = "This clip could not be loaded.";
    failed.hidden = true;
    place.append(canvas, failed);
    const kept = { ...clip, canvas, failed, picture: new Image(), state: "loading", tries: 0 };
    kept.picture.addEventListener("load", () => {
      const { naturalWidth, naturalHeight } = kept.picture;
      const whole = naturalWidth >= clip.width * Math.min(clip.columns, clip.frames)
        && naturalHeight >= clip.height * Math.ceil(clip.frames / clip.columns);
      this.came(kept, whole ? "ready" : "failed");
    });
    kept.picture.addEventListener("error", () => this.came(kept, "failed"));
    kept.picture.src = clip.url;
    this.clips.push(kept);
    return place;
  }

  came(clip, state) {
    if (!this.clips.includes(clip)) return;  // its question is no longer on the screen
    clip.state = state;
    clip.failed.hidden = state !== "failed";
    clip.canvas.hidden = state === "failed";
    if (state === "ready") clip.canvas.dataset.ready = "yes";
    this.tell();
    this.draw();
  }

  retry() {
    for (const clip of this.clips) {
      if (clip.state !== "failed") continue;
      this.came(clip, "loading");
      clip.picture.src = `${clip.url}&again=${++clip.tries}`;  // what the browser kept may be what is broken
    }
  }

  tell() {
    const failed = this.clips.some((clip) => clip.state === "failed");
    const said = failed ? "A clip could not be loaded: try again, or skip this question." : this.ready ? "" : "The clips are being loaded ...";
    if (this.at("clips").textContent !== said) this.at("clips").textContent = said;
    this.at("retry").hidden = !failed;
    this.changed();
  }

  clear() {
    this.clips = [];
    this.time = 0;
    this.at("player").hidden = true;
    this.tell();
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
    this.tell();
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
    this.seek((Math.floor(this.time / this.frame + 1e-6) + frames) * this.frame);  // from the frame that is shown
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
      if (clip.state !== "ready" || clip.canvas.dataset.frame === String(frame)) continue;
      const [x, y] = [(frame % clip.columns) * clip.width, Math.floor(frame / clip.columns) * clip.height];
      clip.canvas.getContext("2d").drawImage(clip.picture, x, y, clip.width, clip.height, 0, 0, clip.width, clip.height);
      clip.canvas.dataset.frame = frame;
    }
  }
}
