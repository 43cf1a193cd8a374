// Answers that the server does not have yet: one record each in IndexedDB, which all tabs of a browser share. A record goes only when the
// server has acknowledged it. Where the browser keeps nothing (storage full, blocked or damaged) answers wait in memory, and the page says so.
"use strict";

class Outbox {
  // `send(path, body)` throws an error with a `status` where the server answers with one; `changed()` is called on every change, and
  // `refused(message)` of answers that the server will never take.
  constructor(person, send, changed, refused) {
    Object.assign(this, { person, send, changed, refused });
    this.keeping = [];   // records on their way into IndexedDB
    this.memory = [];
    this.waiting = [];   // records of this person in IndexedDB, as they were read last
    this.sending = false;
    this.trouble = null; // why the last answer could not be sent
    this.lock = `rather-outbox:${document.baseURI}`;
    this.opened = new Promise((resolve) => {
      try {
        const opening = indexedDB.open(this.lock, 1);
        opening.onupgradeneeded = () => opening.result.createObjectStore("answers", { autoIncrement: true });
        opening.onsuccess = () => resolve(opening.result);
        opening.onerror = opening.onblocked = () => resolve(null);
      } catch (error) {
        resolve(null);
      }
    });
    addEventListener("beforeunload", (event) => { if (this.memory.length) event.preventDefault(); });
  }

  get records() { return [...this.waiting, ...this.keeping, ...this.memory]; }

  get length() { return this.records.length; }

  // Questions that have an answer here, or an undo.
  get questions() { return this.records.map((record) => record.body.question); }

  // Keep an answer, and send it when its turn comes; resolves as soon as it is kept.
  async add(path, body) {
    const record = { person: this.person, path, body };
    this.keeping.push(record);
    this.changed();
    let number;
    try {
      if (this.memory.length) throw new Error("those before it are in memory, too");
      number = await this.run("readwrite", (answers) => answers.add(record));
    } catch (error) {
      this.memory.push(record);
    }
    this.keeping.shift();
    if (number !== undefined) this.waiting.push({ ...record, number });
    this.changed();
    this.flush();
  }

  async run(mode, work) {
    const database = await this.opened;
    if (!database) throw new Error("this browser keeps nothing");
    return new Promise((resolve, reject) => {
      const transaction = database.transaction("answers", mode, { durability: "strict" });
      const request = work(transaction.objectStore("answers"));
      transaction.oncomplete = () => resolve(request.result);
      transaction.onerror = transaction.onabort = () => reject(transaction.error || new Error("the browser did not keep it"));
    });
  }

  async read() {
    const found = [];
    try {
      await this.run("readonly", (answers) => {
        const request = answers.openCursor();
        request.onsuccess = () => {
          const cursor = request.result;
          if (!cursor) return;
          if (cursor.value.person === this.person) found.push({ ...cursor.value, number: cursor.key });
          cursor.continue();
        };
        return request;
      });
      this.waiting = found;
    } catch (error) {
      // what waits in memory waits on
    }
    this.changed();
  }

  // Send what there is, one after the other, again and again until the server has it. Of all tabs one sends at a time.
  async flush() {
    this.again = true;
    if (this.sending) return;
    this.sending = true;
    while (this.again) {
      this.again = false;
      if (this.trouble) await pause();
      if (navigator.locks) await navigator.locks.request(this.lock, () => this.sendAll());
      else await this.sendAll();  // without TLS browsers have no locks: what two tabs send twice counts once
    }
    this.sending = false;
  }

  // Ends at the first that does not get through: another tab may have a link that still holds.
  async sendAll() {
    await this.read();
    while (this.waiting.length + this.memory.length) {
      const [record] = [...this.waiting, ...this.memory];
      try {
        await this.send(record.path, record.body);
      } catch (error) {
        if (![404, 409, 422].includes(error.status)) {
          this.trouble = error;
          this.again = true;
          break;
        }
        this.refused(error.message);
      }
      this.trouble = null;
      if (record.number === undefined) this.memory.shift();
      else await this.run("readwrite", (answers) => answers.delete(record.number)).catch(pause);
      await this.read();
    }
    this.changed();
  }
}

function pause() {
  return new Promise((resolve) => setTimeout(resolve, 1000));
}
