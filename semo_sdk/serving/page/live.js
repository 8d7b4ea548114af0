// One live session over WebRTC. It tells "event" (what the server said), "stream" and "closed".

const PIECE = 4000; // samples in a message: 250 ms
const AHEAD = 8; // seconds of a recording that may be under way
// Browsers bring sound and picture together slowly, some 20 ms a second, so both begin with the delay that they would
// end with; Chromium then holds 25 ms more of the sound, and 10 ms less of the picture.
const SOUND_MS = 75;
const PICTURE_MS = 110;

/** A refusal of the server, with its code. */
export class Refusal extends Error {
  constructor(status, error) {
    super(error?.message ?? `the server answered with status ${status}`);
    this.status = status;
    this.code = error?.code ?? "unknown";
    this.retryAfter = error?.retry_after;
  }
}

/** The API: JSON out, JSON in. The key stays in this object. */
export class Api {
  key = "";

  async fetch(path, options = {}) {
    const headers = { ...options.headers, ...(this.key && { Authorization: `Bearer ${this.key}` }) };
    const answer = await fetch(path, { ...options, headers });
    if (answer.ok) return answer;
    const body = await answer.json().catch(() => ({}));
    throw new Refusal(answer.status, { ...body.error, retry_after: answer.headers.get("Retry-After") });
  }

  async get(path) { return (await this.fetch(path)).json(); }

  async post(path, body) {
    const form = body instanceof FormData;
    const headers = form ? {} : { "Content-Type": "application/json" };
    return (await this.fetch(path, { method: "POST", headers, body: form ? body : JSON.stringify(body) })).json();
  }
}

export class Live extends EventTarget {
  #pc; #channel; #sender; #turn = 0; #jitter = { delay: 0, frames: 0 }; #closed = false;

  constructor(iceServers) {
    super();
    this.#pc = new RTCPeerConnection({ iceServers });
    const sound = this.#pc.addTransceiver("audio", { direction: "sendrecv" });
    const picture = this.#pc.addTransceiver("video", { direction: "recvonly" });
    this.#sender = sound.sender;
    sound.receiver.jitterBufferTarget = SOUND_MS;
    picture.receiver.jitterBufferTarget = PICTURE_MS;
    this.#channel = this.#pc.createDataChannel("semo");
    this.#channel.onmessage = ({ data }) => {
      const event = JSON.parse(data);
      this.#tell("event", event);
      if (event.type === "session.closed") this.#end(event);
    };
    this.#channel.onclose = () => this.#end({ reason: "the connection was lost" });
    this.#pc.ontrack = ({ streams }) => this.#tell("stream", streams[0]);
    this.#pc.onconnectionstatechange = () => {
      if (this.#pc.connectionState === "failed") this.#end({ reason: "the connection was lost" });
    };
  }

  /** Asks the server for a session; see the API for the options. */
  async connect(api, options) {
    try {
      await this.#pc.setLocalDescription(await this.#pc.createOffer());
      await this.#gathered();
      const answer = await api.post("/v1/webrtc/offer", { sdp: this.#pc.localDescription.sdp, ...options });
      await this.#pc.setRemoteDescription({ type: "answer", sdp: answer.sdp });
    } catch (error) {
      this.#closed = true; // it never was
      this.#pc.close();
      throw error;
    }
  }

  /** The track of a microphone, or null. */
  async listen(track) {
    await this.#sender.replaceTrack(track);
    this.say("listen", { on: Boolean(track) });
    if (!track) this.say("speech.end");
  }

  /** Speaks a recording (Int16Array, mono, 16 kHz); false if something else cut it short. */
  async speak(pcm) {
    this.interrupt();
    const turn = this.#turn;
    const begun = performance.now();
    for (let at = 0; at < pcm.length; at += PIECE) {
      while (at / 16000 - (performance.now() - begun) / 1000 > AHEAD) await new Promise((done) => setTimeout(done, 100));
      if (turn !== this.#turn || this.#closed) return false;
      this.#channel.send(pcm.slice(at, at + PIECE));
    }
    this.say("speech.end");
    return true;
  }

  interrupt() {
    this.#turn++;
    this.say("interrupt");
  }

  adjust(settings) { this.say("settings", settings); }

  say(type, fields = {}) {
    if (this.#channel.readyState === "open") this.#channel.send(JSON.stringify({ type, ...fields }));
  }

  /** Round trip and playout delay in seconds, frames a second. */
  async measure() {
    const found = { roundTrip: null, playout: null, fps: null };
    for (const report of (await this.#pc.getStats()).values()) {
      if (report.type === "candidate-pair" && report.nominated) found.roundTrip = report.currentRoundTripTime ?? null;
      if (report.type !== "inbound-rtp" || report.kind !== "video") continue;
      const { jitterBufferDelay: delay, jitterBufferEmittedCount: frames } = report;
      if (frames > this.#jitter.frames) found.playout = (delay - this.#jitter.delay) / (frames - this.#jitter.frames);
      this.#jitter = { delay, frames };
      found.fps = report.framesPerSecond ?? null;
    }
    return found;
  }

  close() {
    this.say("session.end");
    this.#end(null);
  }

  #end(why) {
    if (this.#closed) return;
    this.#closed = true;
    this.#pc.close();
    this.#tell("closed", why);
  }

  #tell(type, detail) { this.dispatchEvent(new CustomEvent(type, { detail })); }

  async #gathered() {
    const pc = this.#pc;
    const done = () => pc.iceGatheringState === "complete";
    const late = performance.now() + 3000; // what was found by then must do
    while (!done() && performance.now() < late) await new Promise((next) => setTimeout(next, 20));
  }
}
