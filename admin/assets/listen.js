// An operator's ear and voice on one call: a peer connection that media/webrtc/operator.py answers.
// States: connecting, listening, talking, and at last ended, with a reason to read.

const GATHERING_MS = 3000, CONNECTED_MS = 10000;
const GO_ON_MS = 10000; // else the bridge takes us off
const MICROPHONE = { audio: { echoCancellation: true, noiseSuppression: true, autoGainControl: true } };
const WHY = {
  NotAllowedError: 'The microphone may not be used. Allow it for this page in the browser’s settings.',
  NotFoundError: 'No microphone is there.',
  NotReadableError: 'The microphone can’t be read: another program may have it.',
};

export class Line {
  // `ask(path, body)` posts and gives the answer's content, or throws an Error to read; `on(state, reason)` is told.
  constructor(call, ask, on) {
    this.call = call;
    this.ask = ask;
    this.on = on;
    this.state = 'connecting';
    this.tap = '';
    this.peer = this.sender = this.microphone = this.goingOn = null;
    this.sound = new Audio();
  }

  async open() {
    this.on(this.state, '');
    try {
      await this.connect();
    } catch (error) {
      this.end(error.message);
    }
  }

  async connect() {
    const peer = this.peer = new RTCPeerConnection({ iceServers: await this.ask('/admin/ice-servers') });
    const messages = this.messages = peer.createDataChannel('tandem');
    this.sender = peer.addTransceiver('audio', { direction: 'sendrecv' }).sender; // silent until one takes over
    peer.ontrack = ({ track }) => {
      this.sound.srcObject = new MediaStream([track]);
      this.sound.play().catch(() => this.end('The browser plays no sound on this page.'));
    };
    peer.onconnectionstatechange = () => {
      if (['failed', 'closed'].includes(peer.connectionState)) this.end('The connection was lost.');
    };
    messages.onmessage = ({ data }) => this.told(JSON.parse(data));
    messages.onclose = () => this.end('The connection was lost.');
    await peer.setLocalDescription();
    await until(peer, 'icegatheringstatechange', () => peer.iceGatheringState === 'complete', GATHERING_MS);
    const { tap, sdp } = await this.ask(`/admin/calls/${encodeURIComponent(this.call)}/listeners`,
      { sdp: peer.localDescription.sdp });
    this.tap = tap;
    if (this.state === 'ended') return;
    await peer.setRemoteDescription({ type: 'answer', sdp });
    this.goingOn = setInterval(() => this.goOn(), GO_ON_MS);
    await until(peer, 'connectionstatechange', () => peer.connectionState === 'connected', CONNECTED_MS);
    if (peer.connectionState !== 'connected') throw new Error('The network lets no call through to this browser.');
  }

  async goOn() {
    try {
      await this.ask(`/admin/listeners/${encodeURIComponent(this.tap)}`, {});
    } catch (error) {
      if (error.status && error.status < 500) this.end(error.message); // else it is tried again: the bridge has patience
    }
  }

  told({ type, state, reason }) {
    if (type !== 'state') return;
    if (state === 'ended') this.end(`${reason.charAt(0).toUpperCase()}${reason.slice(1)}.`);
    else this.becomes(state);
  }

  // Before taking over; throws an Error to read.
  async openMicrophone() {
    if (!navigator.mediaDevices) throw new Error('Browsers give the microphone to pages by https alone.');
    try {
      [this.microphone] = (await navigator.mediaDevices.getUserMedia(MICROPHONE)).getTracks();
    } catch ({ name }) {
      throw new Error(WHY[name] ?? 'The microphone can’t be used.');
    }
    if (this.state === 'ended') this.closeMicrophone();
    else await this.sender.replaceTrack(this.microphone);
  }

  closeMicrophone() {
    this.microphone?.stop();
    this.microphone = null;
    if (this.peer?.signalingState !== 'closed') this.sender?.replaceTrack(null).catch(() => {});
  }

  becomes(state) {
    if (this.state === 'ended' || this.state === state) return;
    const before = this.state;
    this.state = state;
    if (before === 'talking') this.closeMicrophone();
    this.on(state, '');
  }

  end(reason = '') {
    if (this.state === 'ended') return;
    this.state = 'ended';
    clearInterval(this.goingOn);
    this.closeMicrophone();
    this.sound.srcObject = null;
    if (this.messages?.readyState === 'open') this.messages.send('{"type":"hangup"}');
    setTimeout(() => this.peer?.close(), 500); // by then it is said
    this.on('ended', reason);
  }
}

function until(target, event, condition, most_ms) {
  return new Promise((resolve) => {
    const look = () => { if (condition()) resolve(); };
    target.addEventListener(event, look);
    setTimeout(resolve, most_ms);
    look();
  });
}
