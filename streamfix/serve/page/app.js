// The page: states, settings, figures. The picture is in stage.js, the connection in peer.js.

import { Peer, Refused, api } from "./peer.js";
import { Recorder, Stage } from "./stage.js";

const $ = (id) => document.getElementById(id);
const stage = new Stage({
  video: $("video"), canvas: $("canvas"), box: $("stage"), split: $("split"), divider: $("divider"),
  before: $("tag-before"), after: $("tag-after"),
});
const CONTROLS = ["stop", "compare", "mirror", "snapshot", "record", "full"];
const CAMERA_ERRORS = {
  NotAllowedError: ["The camera is blocked", "Allow the camera for this page in the browser's address bar, then try again."],
  NotFoundError: ["No camera found", "Connect a camera, or watch the live stream if there is one."],
  NotReadableError: ["The camera is busy", "Another program uses the camera. Close it, then try again."],
  OverconstrainedError: ["This camera cannot do that", "Choose another resolution or camera, then try again."],
};

let about = null, camera = null, peer = null, recorder = null, retry = 0, timer = 0, lastFrames = 0, lastTime = 0, wanted = false, chosen = false;
let leaving = null; // settles when the server has heard the last good-bye
let runs = 0; // the number of the newest start or stop: an older start that was waiting for something gives up
let token = readToken();

function readToken() {
  // the token comes behind a #, which browsers never send; it is taken out of the address bar at once
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given) {
    sessionStorage.setItem("streamfix-token", given);
    history.replaceState(null, "", location.pathname + location.search);
  }
  return given || sessionStorage.getItem("streamfix-token");
}

// --- states ---

function say(text) { $("live").textContent = text; }

function pill(state, text) { $("pill").dataset.state = state; $("pill-text").textContent = text; }

function cover(title, text, { button = null, busy = false, form = false } = {}) {
  $("cover").hidden = false;
  $("cover-title").textContent = title;
  $("cover-text").textContent = text;
  $("start").hidden = !button;
  $("start").textContent = button || "";
  $("spinner").hidden = !busy;
  $("token-form").hidden = !form;
  $("notice").hidden = true;
  say(`${title}. ${text}`);
}

function enable(live) { for (const id of CONTROLS) $(id).disabled = !live; }

function idle() {
  const watching = $("source").value === "stream";
  pill("idle", "Ready");
  cover(watching ? "Watch the live stream" : "See yourself restored, live",
    watching ? "One pipeline restores the stream for everybody who watches."
      : "Your camera goes to this server, faces come back clearer. Nothing is stored.",
    { button: watching ? "Watch" : "Start camera" });
}

function failed(title, text, button = "Try again") {
  stop();
  pill("error", title);
  cover(title, text, { button });
}

// --- the connection ---

async function openCamera() {
  if (!navigator.mediaDevices?.getUserMedia) {
    throw Object.assign(new Error("This page needs HTTPS: browsers give the camera to secure pages only."), { title: "Not a secure page" });
  }
  const [width, height] = $("size").value.split("x").map(Number);
  const device = $("camera").value;
  const stream = await navigator.mediaDevices.getUserMedia({
    video: { width: { ideal: width }, height: { ideal: height }, frameRate: { ideal: 30 }, ...(device ? { deviceId: { exact: device } } : {}) },
    audio: $("sound").checked ? { echoCancellation: true, noiseSuppression: true } : false,
  });
  stream.getVideoTracks()[0].addEventListener("ended", () => camera === stream && failed("The camera is gone", "It was unplugged or switched off."));
  await listCameras();
  return stream;
}

async function listCameras() {
  const devices = (await navigator.mediaDevices.enumerateDevices()).filter((d) => d.kind === "videoinput");
  const chosen = $("camera").value;
  $("camera").replaceChildren(new Option("Default camera", ""),
    ...devices.filter((d) => d.deviceId).map((d, n) => new Option(d.label || `Camera ${n + 1}`, d.deviceId)));
  $("camera").value = [...$("camera").options].some((o) => o.value === chosen) ? chosen : "";
}

async function start() {
  stop();
  const run = ++runs;
  wanted = true;
  const watching = $("source").value === "stream";
  try {
    if (!watching) {
      pill("busy", "Camera");
      cover("Waiting for the camera", "Allow the camera if the browser asks.", { busy: true });
      const stream = await openCamera();
      if (run !== runs) return stream.getTracks().forEach((track) => track.stop()); // given too late: nobody would ever stop it
      camera = stream;
    }
    pill("busy", "Connecting");
    cover("Connecting", "Finding a way to the server.", { busy: true });
    await Promise.race([leaving, new Promise((resolve) => { setTimeout(resolve, 1000); })]); // the place may be the only one
    if (run !== runs) return;
    const opened = peer = new Peer({
      path: watching ? "whep" : "session", token, iceServers: about?.ice_servers ?? [], stream: camera, bitrate: bitrateFor($("size").value),
    });
    opened.addEventListener("track", () => { $("video").srcObject = opened.remote; $("video").play().catch(() => {}); });
    opened.addEventListener("open", () => { settings(); retry = 0; });
    opened.addEventListener("message", ({ detail }) => peer === opened && heard(detail));
    opened.addEventListener("state", ({ detail }) => peer === opened && changed(detail));
    stage.onFirst = () => {
      $("cover").hidden = true;
      pill("live", watching ? "Watching" : "Live");
      say("The video is live.");
      enable(true);
    };
    await (opened.opening = opened.open());
  } catch (error) {
    if (run !== runs) return;
    if (error instanceof Refused && error.status === 401) return askToken(Boolean(token));
    if (error instanceof Refused && error.status === 503) return failed("All places are taken", "Somebody else is on. Try again in a moment.");
    if (error instanceof Refused && error.status === 409) return failed("No live stream", "Nothing is being sent at the moment.");
    if (error instanceof Refused) return failed("The server refused", error.message);
    if (error instanceof TypeError && !peer?.location) return again("The server does not answer", "It may be down, or the network is.");
    const [title, text] = CAMERA_ERRORS[error.name] ?? [error.title ?? "That did not work", error.message];
    failed(title, text);
  }
}

function bitrateFor(size) { const [w, h] = size.split("x").map(Number); return Math.min(Math.max(w * h * 6, 1.5e6), 8e6); }

function changed(state) {
  if (state === "disconnected") { $("notice").hidden = false; $("notice").textContent = "The connection is shaky …"; pill("busy", "Unsteady"); }
  if (state === "connected") { $("notice").hidden = true; if ($("cover").hidden) pill("live", "Live"); }
  if (state === "failed") again("Disconnected", "The way to the server was lost.");
}

function again(title, text) {
  stop();
  wanted = true;
  const seconds = Math.min(2 ** retry++, 30);
  pill("error", "Disconnected");
  cover(title, `${text} Trying again in ${seconds} s.`, { button: "Try now", busy: true });
  timer = setTimeout(start, seconds * 1000);
}

function stop() {
  runs += 1;
  wanted = false;
  clearTimeout(timer);
  if (recorder) record();
  if (peer) leaving = peer.close();
  peer = null;
  for (const track of camera?.getTracks() ?? []) track.stop();
  camera = null;
  $("video").srcObject = null;
  stage.clear();
  enable(false);
  for (const id of ["f-fps", "f-delay", "f-faces", "f-drops", "f-bitrate", "f-restorations"]) $(id).textContent = "–";
  $("f-plan").textContent = "";
}

function askToken(wrong) {
  stop();
  sessionStorage.removeItem("streamfix-token");
  token = about = null;
  pill("error", "Token needed");
  cover(wrong ? "That token is not right" : "This server needs a token", "It is printed where the server was started.", { form: true });
  $("token").focus();
}

// --- what the server says ---

function heard(message) {
  if (message.type === "stats") {
    stage.shape = message.width && message.height ? message.width / message.height : null;
    $("f-faces").textContent = message.faces;
    $("f-restorations").textContent = message.restorations;
    const drops = Object.entries(message.drops).filter(([, n]) => n);
    $("f-drops").textContent = drops.reduce((sum, [, n]) => sum + n, 0);
    $("f-drops").title = drops.map(([reason, n]) => `${reason}: ${n}`).join(", ");
    $("f-plan").title = Object.entries(message.stages_ms).map(([name, ms]) => `${name} ${ms} ms`).join(", ");
    $("f-plan").textContent = message.plan ? `To keep up: ${message.plan}.` : "";
    $("notice").hidden = !message.notice;
    $("notice").textContent = message.notice || "";
    if (message.notice) pill("busy", "On hold"); else if ($("cover").hidden) pill("live", camera ? "Live" : "Watching");
    figures(message);
  } else if (message.type === "bye") {
    if (message.reason.includes("going down")) retry = Math.max(retry, 3); // it takes a while to come back
    if (message.reason.includes("going down")) again("The server says good-bye", "It is going down.");
    else failed("The session has ended", `${message.reason[0].toUpperCase()}${message.reason.slice(1)}.`);
  } else if (message.type === "error") {
    $("notice").hidden = false;
    $("notice").textContent = message.message;
    say(message.message);
  }
}

async function figures(message) {
  if (!peer) return;
  const own = await peer.figures();
  const now = performance.now();
  if (now - lastTime > 1800) {
    if (lastTime && now - lastTime < 5000) $("f-fps").textContent = Math.round(1000 * (stage.frames - lastFrames) / (now - lastTime));
    [lastFrames, lastTime] = [stage.frames, now];
  }
  $("f-bitrate").textContent = own.bitrate > 1e6 ? `${(own.bitrate / 1e6).toFixed(1)} Mb/s` : `${Math.round(own.bitrate / 1e3)} kb/s`;
  if (message.latency_p50_ms !== null) {
    // camera and encoder here, the way there and back, the server's work, the buffer here; half a frame each to take and to show
    const delay = 1000 * (own.encode + own.roundTrip + own.buffer) + message.latency_p50_ms + (message.stages_ms.encode ?? 0) + 50;
    $("f-delay").textContent = camera ? `≈ ${Math.round(delay / 5) * 5} ms` : `≈ ${Math.round(message.latency_p50_ms)} ms here`;
  }
}

function settings() {
  const compare = $("compare").getAttribute("aria-pressed") === "true";
  if (camera) peer?.say({ type: "settings", strength: $("strength").value / 100, model: $("model").value, ...(about?.faces.length ? { faces: $("faces").value } : {}), compare });
  else peer?.say({ type: "view", compare });
}

// --- controls ---

function pressed(id, state) { $(id).setAttribute("aria-pressed", String(state)); }
function isPressed(id) { return $(id).getAttribute("aria-pressed") === "true"; }

function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

function stamp() { return new Date().toISOString().slice(0, 19).replace(/[:T]/g, "-"); }

async function record() {
  if (recorder) {
    const done = recorder;
    recorder = null;
    pressed("record", false);
    $("record-text").textContent = "Record";
    const blob = await done.stop();
    save(blob, `streamfix-restored-${stamp()}.${blob.type.includes("mp4") ? "mp4" : "webm"}`);
    say("The recording is saved.");
  } else {
    recorder = new Recorder($("canvas"), peer?.remote.getAudioTracks() ?? []);
    pressed("record", true);
    say("Recording.");
  }
}

setInterval(() => {
  if (!recorder) return;
  const seconds = Math.round((Date.now() - recorder.began) / 1000);
  $("record-text").textContent = `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`;
}, 500);

$("start").addEventListener("click", async () => { if (about || await load()) start(); });
$("stop").addEventListener("click", () => { stop(); idle(); $("start").focus(); });
$("compare").addEventListener("click", () => { pressed("compare", !isPressed("compare")); settings(); });
$("mirror").addEventListener("click", () => { stage.mirrored = !stage.mirrored; pressed("mirror", stage.mirrored); stage.draw(); });
$("snapshot").addEventListener("click", async () => { save(await stage.still(), `streamfix-restored-${stamp()}.png`); say("The snapshot is saved."); });
$("record").addEventListener("click", record);
$("full").addEventListener("click", () => document.fullscreenElement ? document.exitFullscreen() : $("stage").requestFullscreen?.());
$("strength").addEventListener("input", () => {
  $("strength-value").textContent = `${$("strength").value} %`;
  $("strength").setAttribute("aria-valuetext", `${$("strength").value} %`);
  settings();
});
for (const id of ["model", "faces"]) $(id).addEventListener("change", settings);
for (const id of ["camera", "size", "sound"]) $(id).addEventListener("change", () => wanted && start());
$("listen").addEventListener("change", () => { $("video").muted = !$("listen").checked; });
$("source").addEventListener("change", () => { chosen = true; sourced(); });
function sourced() {
  const watching = $("source").value === "stream";
  for (const part of document.querySelectorAll(".camera-only")) part.hidden = watching;
  for (const id of ["strength", "model", "faces"]) $(id).disabled = watching; // the stream is everybody's
  if (wanted) start(); else idle();
}
$("token-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  token = $("token").value.trim();
  sessionStorage.setItem("streamfix-token", token);
  await load();
});
window.addEventListener("pagehide", () => peer?.close());
navigator.mediaDevices?.addEventListener("devicechange", listCameras);

async function load() {
  try {
    about = await (await api("api/about", token)).json();
  } catch (error) {
    if (error instanceof Refused && error.status === 401) askToken(Boolean(token));
    else failed("The server does not answer", error instanceof Refused ? error.message : "It may be down, or the network is.");
    return false;
  }
  $("model").replaceChildren(...about.models.map((name) => new Option(name === "passthrough" ? "none (input as it is)" : name, name)));
  const names = { all: "All faces", largest: "Largest face", center: "Face in the centre" };
  $("faces").replaceChildren(...about.faces.map((name) => new Option(names[name] ?? name, name)));
  $("faces").closest(".field").hidden = about.faces.length === 0;
  offerStream();
  // the server's own stream comes first, but not over what somebody chose while this was on its way
  if (about.input && !wanted && !chosen) { $("source").value = "stream"; sourced(); }
  else if (!wanted) idle();
  return true;
}

function offerStream() { $("source").querySelector("[value=stream]").disabled = !(about.live || about.input); }

// a sender may come at any time
setInterval(async () => {
  if (!about || document.hidden) return;
  try {
    about = await (await api("api/about", token)).json();
    offerStream();
  } catch { /* whoever starts something is told */ }
}, 3000);

load();
