// One peer connection by HTTP: an offer is POSTed, candidates are PATCHed, DELETE is the good-bye (WHIP, WHEP, and both at once).

export class Refused extends Error {
  constructor(status, message) { super(message); this.status = status; }
}

export async function api(path, token, options = {}) {
  const headers = { ...(options.headers || {}), ...(token ? { Authorization: `Bearer ${token}` } : {}) };
  const response = await fetch(path, { ...options, headers, cache: "no-store" });
  if (response.ok) return response;
  let sentence = `The server answered ${response.status}.`;
  try { sentence = (await response.json()).error || sentence; } catch { /* not ours: a proxy's page */ }
  throw new Refused(response.status, sentence);
}

// Browsers offer H.264 at level 3.1 (1280x720) whatever they can take; input and result side by side may be more. The level is
// raised where the browser says that it decodes such pictures.
async function raised(sdp) {
  const contentType = "video/H264;level-asymmetry-allowed=1;packetization-mode=1;profile-level-id=42e033";
  const video = { contentType, width: 3840, height: 1080, bitrate: 8e6, framerate: 30 };
  try {
    const { supported } = await navigator.mediaCapabilities.decodingInfo({ type: "webrtc", video });
    return supported ? sdp.replace(/(profile-level-id=42[0-9a-f]{2})1f/gi, (_, profile) => `${profile}33`) : sdp;
  } catch { return sdp; }
}

export class Peer extends EventTarget {
  // path: "session" (camera up, result down) or "whep" (watch). stream: the camera's, or null.
  constructor({ path, token, iceServers, stream, bitrate }) {
    super();
    Object.assign(this, { path, token, stream, bitrate, location: null, etag: null, opening: null, waiting: [], closed: false });
    const pc = this.pc = new RTCPeerConnection({ iceServers, bundlePolicy: "max-bundle" });
    this.remote = new MediaStream();
    pc.addEventListener("track", ({ track, receiver }) => {
      if ("jitterBufferTarget" in receiver) receiver.jitterBufferTarget = 0; // live: no more delay than the network asks for
      this.remote.addTrack(track);
      this.emit("track", track);
    });
    pc.addEventListener("icecandidate", ({ candidate }) => candidate && this.trickle(candidate));
    pc.addEventListener("connectionstatechange", () => {
      if (!this.closed) this.emit("state", pc.connectionState);
    });
    this.channel = pc.createDataChannel("control");
    this.channel.addEventListener("message", ({ data }) => {
      try { this.emit("message", JSON.parse(data)); } catch { /* not ours */ }
    });
    this.channel.addEventListener("open", () => this.emit("open", null));
  }

  emit(name, detail) { this.dispatchEvent(new CustomEvent(name, { detail })); }

  async open() {
    const { pc } = this;
    if (this.stream) {
      for (const track of this.stream.getTracks()) {
        if (track.kind === "video") track.contentHint = "motion";
        const { sender } = pc.addTransceiver(track, { direction: "sendrecv", streams: [this.stream] });
        if (track.kind === "video") await this.keepResolution(sender);
      }
    } else {
      pc.addTransceiver("video", { direction: "recvonly" });
      pc.addTransceiver("audio", { direction: "recvonly" });
    }
    await pc.setLocalDescription();
    const response = await api(this.path, this.token, {
      method: "POST", headers: { "Content-Type": "application/sdp" }, body: await raised(pc.localDescription.sdp),
    });
    this.location = response.headers.get("Location").replace(/^\//, "");
    this.etag = response.headers.get("ETag");
    if (this.closed) return this.goodbye();
    await pc.setRemoteDescription({ type: "answer", sdp: await response.text() });
    const early = this.waiting;
    this.waiting = null;
    if (early.length) await this.patch(early);
  }

  // Chromium sends 480x360 within seconds when it finds itself short of anything, and stays there: faces need their pixels
  async keepResolution(sender) {
    try {
      const parameters = sender.getParameters();
      parameters.degradationPreference = "maintain-resolution";
      if (parameters.encodings?.length) parameters.encodings[0].maxBitrate = this.bitrate;
      await sender.setParameters(parameters);
    } catch { /* a browser that does not know it */ }
  }

  async trickle(candidate) {
    if (this.waiting) this.waiting.push(candidate);
    else await this.patch([candidate]);
  }

  async patch(candidates) {
    const first = candidates[0];
    const body = [
      `a=ice-ufrag:${first.usernameFragment}`, `a=ice-pwd:${this.password()}`, "m=video 9 UDP/TLS/RTP/SAVPF 0",
      `a=mid:${first.sdpMid ?? 0}`, ...candidates.map((c) => `a=${c.candidate}`), "",
    ].join("\r\n");
    try {
      await api(this.location, this.token, {
        method: "PATCH", headers: { "Content-Type": "application/trickle-ice-sdpfrag", "If-Match": this.etag }, body,
      });
    } catch (error) { console.warn("candidate not taken:", error.message); }
  }

  password() { return /a=ice-pwd:(.*)/.exec(this.pc.localDescription.sdp)[1].trim(); }

  say(message) { if (this.channel.readyState === "open") this.channel.send(JSON.stringify(message)); }

  // what the browser knows of the way there and back: seconds, bits a second
  async figures() {
    const found = { encode: 0, buffer: 0, roundTrip: 0, bitrate: 0, lost: 0, decoded: 0, key: 0 };
    for (const entry of (await this.pc.getStats()).values()) {
      if (entry.type === "outbound-rtp" && entry.kind === "video" && entry.framesEncoded) {
        found.encode = entry.totalEncodeTime / entry.framesEncoded;
      } else if (entry.type === "inbound-rtp" && entry.kind === "video") {
        const before = this.inbound;
        this.inbound = entry;
        found.lost = entry.packetsLost;
        if (before) {
          const seconds = (entry.timestamp - before.timestamp) / 1000;
          const frames = entry.jitterBufferEmittedCount - before.jitterBufferEmittedCount;
          found.bitrate = seconds > 0 ? 8 * (entry.bytesReceived - before.bytesReceived) / seconds : 0;
          if (frames > 0) found.buffer = (entry.jitterBufferDelay - before.jitterBufferDelay) / frames;
          found.decoded = entry.framesDecoded - before.framesDecoded;
          if (entry.pliCount > before.pliCount) this.say({ type: "keyframe" }); // RTCP's own request ends in aiortc
        }
      } else if (entry.type === "candidate-pair" && entry.nominated && entry.currentRoundTripTime) {
        found.roundTrip = entry.currentRoundTripTime;
      }
    }
    return found;
  }

  async goodbye() {
    const where = this.location;
    this.location = null;
    if (where) await api(where, this.token, { method: "DELETE", keepalive: true }).catch(() => {});
  }

  // settles when the server has been told: where its answer to the offer is still on the way, open() tells it
  close() {
    this.closed = true;
    const told = this.goodbye();
    this.pc.close();
    return Promise.allSettled([told, this.opening]);
  }
}
