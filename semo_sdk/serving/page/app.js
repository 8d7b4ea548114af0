import { Api, Live, Refusal } from "./live.js";
import { Microphone, decode, wav } from "./sound.js";

// The sliders: shown if the server has a setting of that name, which also says how far it goes.
const CONTROLS = [
  { name: "expressiveness", label: "Expressiveness" },
  { name: "head_motion", label: "Head motion" },
  { name: "blink", label: "Blinking" },
];
const LATENCIES = { low: "Low", balanced: "Balanced", quality: "High, best quality" };

// The server's error codes in plain words; what is not here is told in the server's own.
const WORDS = {
  no_face: "No face was found in this photo. Try one that shows a face from the front.",
  face_too_small: "The face in this photo is too small. Try one taken from closer.",
  ambiguous_face: "There are several faces in this photo. Try one with a single face.",
  unsupported_image: "This is not a photo that can be used. JPEG, PNG and WebP can.",
  invalid_image: "This photo is damaged and cannot be read.",
  image_too_large: "This photo is too large.",
  request_too_large: "This file is too large.",
  unsupported_audio: "This recording cannot be used. WAV, MP3, FLAC, Ogg and M4A can.",
  capacity: "The server is busy.",
  quota: "You have used up your share for the moment.",
  portrait_not_found: "The server has forgotten this portrait. Choose it again.",
  invalid_api_key: "This key is not valid.",
};
const ENDINGS = {
  "nothing was heard from the client": "Nothing was said for a while, so the portrait was let go. One click brings it back.",
  "the longest time of a session is over": "This session has reached its longest time. One click begins another.",
  "the server is shutting down": "The server is being stopped.",
  "the connection was lost": "The connection was lost. One click brings the portrait back.",
};
const DEVICE = {
  insecure: "A browser opens the microphone only for https:// pages and on this machine itself.",
  NotAllowedError: "The microphone was not allowed. Allow it in the browser’s address bar.",
  NotFoundError: "No microphone was found.",
  EncodingError: "This recording cannot be read by the browser. WAV and MP3 always can.",
};

const $ = (id) => document.getElementById(id);
const api = new Api();
let config = null;
let portrait = null; // { id, photo }
let current = null; // the session that is there or coming
let live = null; // the same, once it is there
let microphone = null;
let reply = null; // { sound, portrait }: what was said last, and by whom
let answerDelay = null;

function plain(error) {
  if (error instanceof Refusal) {
    const wait = error.retryAfter ? ` Try again in ${error.retryAfter} s.` : "";
    return (WORDS[error.code] ?? `${error.message[0].toUpperCase()}${error.message.slice(1)}.`) + wait;
  }
  if (error instanceof TypeError) return "The server does not answer. Is it still running?";
  return DEVICE[error.message] ?? DEVICE[error.name] ?? `Something went wrong: ${error.message}`;
}

function complain(error) {
  if (error instanceof Refusal && error.status === 401) askForKey(api.key ? WORDS.invalid_api_key : "");
  else tell(typeof error === "string" ? error : plain(error));
}

function tell(words) {
  $("alert").firstElementChild.textContent = words;
  $("alert").hidden = !words;
}

/** Runs what a person asked for; a failure is told in words. */
const guarded = (work) => async (...given) => {
  tell("");
  try { await work(...given); } catch (error) { complain(error); }
};

function show(state) {
  $("screen").dataset.state = state;
  $("state").textContent = state;
}

function enable() {
  const on = Boolean(live);
  for (const id of ["interrupt", "mute", "stop", "microphone", "audio-file", "example-speech"]) $(id).disabled = !on;
  $("start").hidden = on || $("screen").dataset.state === "connecting";
  $("download").disabled = !reply;
}

function askForKey(words) {
  tell(words);
  $("key-form").hidden = false;
  $("key").focus();
}

// Settings

function settings() {
  const chosen = { latency: $("latency-mode").value || null };
  for (const slider of document.querySelectorAll("#controls input")) chosen[slider.name] = Number(slider.value);
  return chosen;
}

function buildControls() {
  $("controls").replaceChildren();
  for (const { name, label } of CONTROLS) {
    const range = config.controls.find((control) => control.name === name);
    if (!range) continue;
    const row = document.createElement("div");
    row.className = "control";
    const title = Object.assign(document.createElement("label"), { htmlFor: name, textContent: label });
    const slider = Object.assign(document.createElement("input"), { type: "range", id: name, name });
    slider.min = range.minimum;
    slider.max = Math.min(range.maximum, 4 * Math.max(range.value, 0.5)); // beyond is for experiments
    slider.step = 0.05;
    slider.value = range.value;
    const value = document.createElement("output");
    const update = () => { value.textContent = Number(slider.value).toFixed(2); };
    slider.oninput = update;
    slider.onchange = () => live?.adjust({ [name]: Number(slider.value) });
    update();
    row.append(title, slider, value);
    $("controls").append(row);
  }
  $("latency-mode").replaceChildren(...config.latencies.map((name) => new Option(LATENCIES[name] ?? name, name)));
}

async function configure() {
  try {
    config = await api.get("/v1/webrtc");
  } catch (error) {
    complain(error);
    return;
  }
  $("key-form").hidden = true;
  $("default").hidden = !config.default_portrait;
  buildControls();
}

// The session

async function connect() {
  await hangUp();
  show("connecting");
  enable();
  const servers = config.ice_servers.map(({ urls, username, credential }) =>
    username ? { urls, username, credential } : { urls });
  const session = (current = new Live(servers));
  const mine = (work) => ({ detail }) => { if (current === session) work(detail); };
  session.addEventListener("stream", mine((stream) => { $("video").srcObject = stream; }));
  session.addEventListener("event", mine(heard));
  session.addEventListener("closed", mine(ended));
  try {
    await session.connect(api, { portrait_id: portrait.id, ...settings() });
  } catch (error) {
    if (current !== session) return; // somebody has chosen another portrait meanwhile
    ended(null);
    throw error;
  }
  if (current !== session) return void session.close();
  live = session;
  enable();
}

function heard(event) {
  if (event.type === "session.started") show("idle");
  if (event.type === "state") show(event.state);
  if (event.type === "error") complain(new Refusal(0, event.error));
  if (event.type === "server.draining") tell(`The server will stop in ${Math.round(event.seconds)} s.`);
  if (event.type === "stats") measure(event);
}

async function measure({ first_frame: firstFrame }) {
  if (!live) return;
  const { roundTrip, playout, fps } = await live.measure();
  if (!live) return;
  const ms = (seconds) => (seconds === null ? "–" : `${Math.round(seconds * 1000)} ms`);
  answerDelay = firstFrame === null || playout === null ? answerDelay : firstFrame + (roundTrip ?? 0) / 2 + playout;
  $("latency").textContent = ms(answerDelay);
  $("network").textContent = ms(roundTrip);
  $("fps").textContent = fps === null ? "–" : fps.toFixed(0);
}

function ended(why) {
  live = current = null;
  answerDelay = null;
  closeMicrophone();
  $("screen").classList.remove("live");
  $("video").srcObject = null;
  for (const id of ["latency", "fps", "network"]) $(id).textContent = "–";
  show("off");
  enable();
  if (why?.error) complain(new Refusal(0, why.error));
  else if (why) tell(ENDINGS[why.reason] ?? `The session has ended: ${why.reason}.`);
}

async function hangUp() {
  await closeMicrophone();
  const old = current;
  ended(null);
  old?.close();
}

// The portrait

async function usePhoto(file) {
  if (!config) await configure();
  if (!config) return;
  const form = new FormData();
  form.append("image", file);
  const stored = await api.post("/v1/portraits", form);
  if (portrait?.photo) URL.revokeObjectURL(portrait.photo);
  portrait = { id: stored.id, photo: URL.createObjectURL(file) };
  $("photo").src = portrait.photo;
  $("photo").hidden = false;
  await connect();
  const advice = Object.values(stored.advice).join("; ");
  if (advice) tell(`Another photo would speak better: ${advice}.`);
}

const useExample = guarded(async () => usePhoto(await (await fetch("/page/portrait.jpg")).blob()));

$("example").onclick = useExample;
$("default").onclick = guarded(async () => {
  portrait = { id: "default" };
  $("photo").hidden = true; // the server does not show it
  await connect();
});
$("start").onclick = () => (portrait ? guarded(connect)() : useExample());
$("stop").onclick = guarded(hangUp);

// The voice

async function closeMicrophone() {
  if (!microphone) return;
  const closing = microphone;
  microphone = null;
  $("microphone").setAttribute("aria-pressed", "false");
  $("microphone").textContent = "Use the microphone";
  await live?.listen(null);
  reply = { sound: await closing.stop(), portrait: closing.portrait };
  enable();
}

$("microphone").onclick = guarded(async () => {
  if (microphone) return closeMicrophone();
  const opened = await Microphone.open();
  if (!live) return void opened.stop();
  microphone = Object.assign(opened, { portrait: portrait.id });
  live.interrupt();
  $("microphone").setAttribute("aria-pressed", "true");
  $("microphone").textContent = "Stop the microphone";
  await live.listen(opened.track);
});

async function useRecording(file) {
  if (!live) return tell("Choose a portrait first.");
  await closeMicrophone();
  const pcm = await decode(file);
  reply = { sound: wav(pcm), portrait: portrait.id };
  enable();
  await live?.speak(pcm);
}

$("example-speech").onclick = guarded(async () => useRecording(await (await fetch("/page/speech.mp3")).blob()));
$("interrupt").onclick = guarded(() => live?.interrupt());
$("mute").onclick = () => {
  $("video").muted = !$("video").muted;
  $("mute").setAttribute("aria-pressed", String($("video").muted));
};

$("download").onclick = guarded(async () => {
  const button = $("download");
  button.disabled = true;
  try {
    const form = new FormData();
    form.append("audio", reply.sound, "reply");
    form.append("portrait_id", reply.portrait);
    const { latency, ...manner } = settings();
    form.append("latency", config.latencies.includes("quality") ? "quality" : latency);
    for (const [name, value] of Object.entries(manner)) form.append(name, value);
    let video = await api.post("/v1/videos", form);
    while (video.status === "queued" || video.status === "in_progress") {
      button.textContent = `Making the video: ${video.progress} %`;
      await new Promise((done) => setTimeout(done, 400));
      video = await api.get(`/v1/videos/${video.id}`);
    }
    if (video.status !== "completed") throw new Refusal(0, video.error);
    const film = await (await api.fetch(`/v1/videos/${video.id}/content`)).blob();
    const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(film), download: "semo.mp4" });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  } finally {
    button.textContent = "Download the last reply";
    enable();
  }
});

// Files: chosen or dropped

function takeFiles(zone, input, use) {
  const run = guarded(use);
  $(input).onchange = () => { if ($(input).files[0]) run($(input).files[0]); $(input).value = ""; };
  $(zone).ondragover = (event) => { event.preventDefault(); $(zone).classList.add("over"); };
  $(zone).ondragleave = () => $(zone).classList.remove("over");
  $(zone).ondrop = (event) => {
    event.preventDefault();
    $(zone).classList.remove("over");
    const file = event.dataTransfer.files[0];
    if (file) run(file);
  };
}

takeFiles("portrait-drop", "portrait-file", usePhoto);
takeFiles("screen", "portrait-file", usePhoto);
takeFiles("audio-drop", "audio-file", useRecording);

$("video").onplaying = () => $("screen").classList.add("live");
$("latency-mode").onchange = guarded(() => (live ? connect() : undefined)); // another rhythm: another session
$("alert").lastElementChild.onclick = () => tell("");
$("key-form").onsubmit = async (event) => {
  event.preventDefault();
  api.key = $("key").value.trim();
  $("key").value = "";
  tell("");
  await configure();
};
addEventListener("keydown", (event) => { if (event.key === "Escape") live?.interrupt(); });
addEventListener("pagehide", () => live?.close());

enable();
configure();
