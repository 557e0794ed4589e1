// The picture: one video, drawn to a canvas; with comparison the video holds input and result side by side.

export class Stage {
  constructor({ video, canvas, box, split, divider, before, after }) {
    Object.assign(this, { video, canvas, box, split, divider, tags: [before, after] });
    this.context = canvas.getContext("2d", { alpha: false });
    this.mirrored = false;
    this.double = false;   // whether the video holds two pictures
    this.shape = null;     // width over height of one picture, as the server says: the receiver's level may have scaled what comes
    this.frames = 0;
    this.onFirst = null;
    split.addEventListener("input", () => { this.draw(); this.place(); });
    new ResizeObserver(() => this.place()).observe(box);
    const next = (callback) => video.requestVideoFrameCallback
      ? video.requestVideoFrameCallback(callback) : requestAnimationFrame(callback);
    const step = () => { this.draw(); this.frames += 1; next(step); };
    next(step);
  }

  draw() {
    const { video, canvas, context } = this;
    const wide = video.videoWidth, high = video.videoHeight;
    if (!wide || video.readyState < 2) return;
    this.double = this.shape !== null && wide / high > 1.5 * this.shape;
    const width = this.double ? wide / 2 : wide;
    if (canvas.width !== width || canvas.height !== high) {
      canvas.width = width;
      canvas.height = high;
      this.box.style.setProperty("--ratio", `${width} / ${high}`);
    }
    context.save();
    if (this.mirrored) { context.translate(width, 0); context.scale(-1, 1); }
    context.drawImage(video, wide - width, 0, width, high, 0, 0, width, high);
    context.restore();
    if (this.double) {
      const shown = Math.round(width * this.split.value / 100);
      if (shown > 0) {
        const from = this.mirrored ? width - shown : 0;
        context.save();
        if (this.mirrored) { context.translate(shown, 0); context.scale(-1, 1); }
        context.drawImage(video, from, 0, shown, high, 0, 0, shown, high);
        context.restore();
      }
    }
    const comparing = this.double;
    if (this.divider.hidden === comparing) {
      for (const part of [this.divider, this.split, ...this.tags]) part.hidden = !comparing;
      this.place();
    }
    if (this.onFirst) { this.onFirst(); this.onFirst = null; }
  }

  // where the picture lies inside its box: the divider follows the picture, not the letterbox
  place() {
    const { canvas, box, split, divider } = this;
    const scale = Math.min(box.clientWidth / canvas.width, box.clientHeight / canvas.height);
    const width = canvas.width * scale, left = (box.clientWidth - width) / 2;
    divider.style.left = `${left + width * split.value / 100}px`;
    split.style.left = `${left}px`;
    split.style.width = `${width}px`;
    split.setAttribute("aria-valuetext", `${split.value} % input, ${100 - split.value} % restored`);
    this.tags[0].style.opacity = split.value > 12 ? 1 : 0;
    this.tags[1].style.opacity = split.value < 88 ? 1 : 0;
    this.tags[0].style.left = `${left + 12}px`;
    this.tags[1].style.right = `${left + 12}px`;
  }

  // the result alone, at the size of the camera
  still() {
    const { video } = this;
    const wide = video.videoWidth, high = video.videoHeight, width = this.double ? wide / 2 : wide;
    const canvas = new OffscreenCanvas(width, high), context = canvas.getContext("2d");
    if (this.mirrored) { context.translate(width, 0); context.scale(-1, 1); }
    context.drawImage(video, wide - width, 0, width, high, 0, 0, width, high);
    return canvas.convertToBlob({ type: "image/png" });
  }

  clear() {
    this.shape = null;
    for (const part of [this.divider, this.split, ...this.tags]) part.hidden = true;
    this.context.fillRect(0, 0, this.canvas.width, this.canvas.height);
  }
}

export class Recorder {
  // what the canvas shows, and the stream's sound
  constructor(canvas, audio) {
    const stream = canvas.captureStream(30);
    for (const track of audio) stream.addTrack(track);
    const type = ["video/mp4;codecs=avc1.42E01F,mp4a.40.2", "video/webm;codecs=vp9,opus", "video/webm"]
      .find((kind) => MediaRecorder.isTypeSupported(kind));
    this.recorder = new MediaRecorder(stream, { mimeType: type, videoBitsPerSecond: 6e6 });
    this.parts = [];
    this.began = Date.now();
    this.recorder.addEventListener("dataavailable", ({ data }) => data.size && this.parts.push(data));
    this.recorder.start(1000);
  }

  stop() {
    return new Promise((resolve) => {
      this.recorder.addEventListener("stop", () => resolve(new Blob(this.parts, { type: this.recorder.mimeType })));
      this.recorder.stop();
      for (const track of this.recorder.stream.getVideoTracks()) track.stop();
    });
  }
}
