// Recordings: files to PCM for the live session, PCM or a microphone to a file for a video.

export const RATE = 16000;

/** Any audio that the browser knows, as Int16Array: mono, 16 kHz. */
export async function decode(file) {
  const context = new OfflineAudioContext(1, 1, RATE);
  const sound = await context.decodeAudioData(await file.arrayBuffer()); // resampled to the context's rate
  const mixed = new Int16Array(sound.length);
  const channels = Array.from({ length: sound.numberOfChannels }, (_, n) => sound.getChannelData(n));
  for (let i = 0; i < mixed.length; i++) {
    let sum = 0;
    for (const channel of channels) sum += channel[i];
    mixed[i] = Math.max(-1, Math.min(1, sum / channels.length)) * 32767;
  }
  return mixed;
}

/** PCM as a WAV file. */
export function wav(pcm) {
  const head = new DataView(new ArrayBuffer(44));
  const text = (at, word) => [...word].forEach((c, i) => head.setUint8(at + i, c.charCodeAt(0)));
  text(0, "RIFF"); head.setUint32(4, 36 + pcm.byteLength, true); text(8, "WAVEfmt ");
  head.setUint32(16, 16, true); head.setUint16(20, 1, true); head.setUint16(22, 1, true);
  head.setUint32(24, RATE, true); head.setUint32(28, RATE * 2, true);
  head.setUint16(32, 2, true); head.setUint16(34, 16, true);
  text(36, "data"); head.setUint32(40, pcm.byteLength, true);
  return new Blob([head, pcm], { type: "audio/wav" });
}

/** The microphone, without what the page itself plays; `stop()` gives what was recorded. */
export class Microphone {
  static async open() {
    if (!navigator.mediaDevices) throw new Error("insecure");
    const audio = { echoCancellation: true, noiseSuppression: true, autoGainControl: true };
    return new Microphone(await navigator.mediaDevices.getUserMedia({ audio }));
  }

  constructor(stream) {
    this.stream = stream;
    this.track = stream.getAudioTracks()[0];
    this.parts = [];
    this.recorder = new MediaRecorder(stream);
    this.recorder.ondataavailable = (event) => this.parts.push(event.data);
    this.recorder.start();
  }

  stop() {
    return new Promise((done) => {
      this.recorder.onstop = () => done(new Blob(this.parts, { type: this.recorder.mimeType }));
      this.recorder.stop();
      this.track.stop();
    });
  }
}
