// <tandem-call>: a website's visitor presses a button and talks with a Tandem agent. See docs/widget.md.

/** What people read; the attribute `text-NAME` says it in your words. Failures have their code's name. */
const TEXTS = {
	launch: 'Talk to us', title: 'Voice assistant', close: 'Close', words: 'What was said', agent: 'Agent', caller: 'You',
	intro: 'Speak as on the phone. You can interrupt at any time.',
	start: 'Start talking', again: 'Call again', hangup: 'End call', decline: 'Not now',
	agree: 'Agree and start', agree_recorded: 'Agree and start recorded call', privacy: 'Privacy',
	recorded: 'This call may be recorded.',
	mute: 'Mute', sound: 'Sound settings', microphone: 'Microphone', default: 'Default', volume: 'Volume',
	idle: 'Ready when you are',
	'requesting-microphone': 'Please allow the microphone', connecting: 'Connecting…', talking: 'Connected',
	muted: 'You are muted', reconnecting: 'Reconnecting…', ended: 'The call has ended',
	press_to_hear: 'Click to hear it',
	no_permission: 'The microphone is blocked. Please allow it in your browser.',
	no_microphone: 'No microphone was found. Please connect one.',
	microphone_in_use: 'The microphone is in use by another program.',
	blocked: 'This page may not use the microphone.',
	busy: 'All lines are busy. Please try again in a minute.',
	unavailable: 'The service is away. Please try again later.',
	network: 'The connection was lost. Please check your network.',
	rate_limited: 'Too many calls. Please wait a minute.',
	wrong_origin: 'This website may not make calls.',
	bad_token: 'Your sign-in is too old. Please reload the page.',
};

const DARK = `--accent: var(--tandem-accent, #6fd6c4); --back: var(--tandem-background, #151b1b);
	--text: var(--tandem-text, #edf2f1); --danger: var(--tandem-danger, #ff9d92); color-scheme: dark;`;
const STYLE = new CSSStyleSheet();
STYLE.replaceSync(`
:host {
	--accent: var(--tandem-accent, #0b5d57); --back: var(--tandem-background, #fff);
	--text: var(--tandem-text, #17201f); --danger: var(--tandem-danger, #b3261e); color-scheme: light;
	display: block; font: 15px/1.45 var(--tandem-font, system-ui, sans-serif); text-align: start;
}
@media (prefers-color-scheme: dark) { :host(:not([theme=light])) { ${DARK} } }
:host([theme=dark]) { ${DARK} }
* {
	box-sizing: border-box; margin: 0; --soft: color-mix(in srgb, var(--text) 70%, var(--back));
	--fill: color-mix(in srgb, var(--text) 7%, var(--back));
}
[hidden], :host([mode=headless]), .quiet .words, .panel:not(.quiet) .intro, .panel:not(.asking) .notice,
.panel:not(.running) .controls, .panel:not(.talking) :is(.mute, .sound, .time), .running:not(.asking) .start,
.running .intro { display: none !important; }
:host(:not([mode])), :host([mode=floating]) {
	position: fixed; inset: var(--tandem-inset, auto 20px 20px auto); z-index: var(--tandem-z-index, 99999);
	display: grid; gap: 12px; justify-items: var(--tandem-align, end);
}
button, select, input { font: inherit; color: inherit; min-height: 46px; }
button {
	display: flex; align-items: center; justify-content: center; gap: 10px; min-width: 46px; padding: 0 20px;
	border: 1px solid transparent; border-radius: 99px; background: var(--fill); font-weight: 600; cursor: pointer;
}
button:hover { filter: contrast(.9); }
:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; }
svg { width: 22px; fill: none; stroke: currentColor; stroke-width: 1.8; stroke-linecap: round; }
.launcher, .start, .orb { background: var(--accent); color: var(--back); }
.launcher { min-height: 56px; box-shadow: 0 6px 24px #0004; }
.panel {
	display: flex; flex-direction: column; gap: 16px; width: var(--tandem-width, 360px); max-width: 100%;
	height: var(--tandem-height, 520px); padding: 20px; background: var(--back); color: var(--text);
	border: 2px solid var(--fill); border-radius: var(--tandem-radius, 20px);
}
[role=dialog] { max-width: calc(100vw - 40px); max-height: calc(100dvh - 108px); box-shadow: 0 16px 56px #0004; }
.panel, .mute, .orb { position: relative; }
.header, .controls { display: flex; align-items: center; gap: 12px; }
.title { font-size: 17px; font-weight: 650; }
.status, .time, .intro, .who, label, summary { color: var(--soft); font-size: 14px; }
.failed .status { color: var(--danger); }
.time { margin-inline-start: auto; }
.mute, .close { padding: 0; }
.close { background: none; margin: -8px; }
.orb {
	isolation: isolate; display: grid; place-items: center; flex: none; width: 44px; height: 44px; border-radius: 50%;
}
.orb::before {
	content: ''; position: absolute; z-index: -1; inset: 0; border-radius: 50%; background: inherit; opacity: .3;
}
.quiet { text-align: center; text-wrap: balance; }
.quiet .header { flex: 1; flex-direction: column; justify-content: center; }
.quiet .orb { width: 88px; height: 88px; margin-bottom: 8px; }
.orb svg { width: 50%; }
.quiet .close { position: absolute; inset: 18px 18px auto auto; }
.notice a { display: block; padding: 12px; color: var(--accent); }
.words { flex: 1; display: flex; flex-direction: column; gap: 10px; overflow-y: auto; margin: 0 -8px; padding: 8px; }
.utterance { max-width: 86%; }
.caller { align-self: end; text-align: end; }
.who { display: block; margin: 0 4px 2px; }
.said {
	display: inline-block; padding: 8px 13px; border-radius: 16px; background: var(--fill); text-align: start;
	overflow-wrap: anywhere;
}
.caller .said { background: var(--accent); color: var(--back); }
summary { padding: 11px 4px; cursor: pointer; }
select, input { display: block; width: 100%; margin: 4px 0 8px; accent-color: var(--accent); }
select { padding: 0 10px; border: 1px solid var(--soft); border-radius: 10px; background: var(--back); }
.mute[aria-pressed=true] { background: var(--text); color: var(--back); }
.mute[aria-pressed=false] path + path { display: none; }
.meter {
	position: absolute; inset: -1px; border: 3px solid var(--accent); border-radius: 50%;
	clip-path: inset(calc(100% - 100% * var(--level, 0)) 0 0);
}
.hangup { flex: 1; }
.talking .hangup { background: var(--danger); color: var(--back); }
@keyframes wait { to { transform: scale(1.6); opacity: 0; } }
@media (prefers-reduced-motion: no-preference) {
	.orb::before { transform: scale(calc(1 + var(--level, 0) * .5)); transition: transform .1s; }
	.opening .orb::before { animation: wait 1.2s infinite; }
}
`);

const share = (number) => Math.min(1, Math.max(0, number)) || 0;
const GATHERING_MS = 2000, CONNECT_MS = 15000, RECONNECT_MS = 4000;
const QUIET_S = 2; // without a packet: the network is gone, for the server sends always

/** Why there is no call: its code names a text. */
const fault = (code, message) => Object.assign(new Error(message), { code });

/** Wait until `test` holds, at most `ms`; throws when the signal aborts. */
async function until(test, ms, signal) {
	for (const end = Date.now() + ms; !test() && Date.now() < end;) {
		signal.throwIfAborted();
		await new Promise((go) => { setTimeout(go, 20); });
	}
}

/** POST and get JSON; throws a fault with the server's code, or `network`. */
async function post(url, body, token, ms = 10000) {
	const headers = { 'Content-Type': 'application/json', ...(token && { Authorization: `Bearer ${token}` }) };
	const request = { method: 'POST', headers, body: JSON.stringify(body), signal: AbortSignal.timeout(ms) };
	const answer = await fetch(url, request).catch(() => { throw fault('network'); });
	const said = await answer.json().catch(() => ({ error: 'unavailable' }));
	if (!answer.ok || said.error) throw fault(said.error ?? 'unavailable', said.message);
	return said;
}

async function openTrack(id, raw) {
	if (!navigator.mediaDevices) throw fault('blocked'); // no HTTPS
	const audio = { echoCancellation: !raw, noiseSuppression: !raw, autoGainControl: !raw };
	if (id) audio.deviceId = { exact: id };
	try {
		return (await navigator.mediaDevices.getUserMedia({ audio })).getTracks()[0];
	} catch ({ name }) {
		if (name === 'OverconstrainedError') return openTrack('', raw); // unplugged
		if (document.featurePolicy?.allowsFeature('microphone') === false) throw fault('blocked'); // only Chrome tells
		const codes = { NotAllowedError: 'no_permission', NotFoundError: 'no_microphone' };
		throw fault(codes[name] ?? 'microphone_in_use');
	}
}

/** The network of one call; it calls `on.open()`, `on.sound(stream)`, `on.message(message)`. */
function makeCall(on) {
	const stop = new AbortController(), { signal } = stop;
	let options, peer, channel, url, token, track, timer, reconnecting, quiet = 0, packets = 0;

	async function connect(server, session, iceTransportPolicy, microphone) {
		options = { iceServers: session.ice_servers, iceTransportPolicy };
		track = microphone;
		peer = newPeer();
		const answer = await post(`${server}api/web/calls`, { sdp: await offer(peer) }, session.token);
		url = `${server}api/web/calls/${answer.call}`;
		token = answer.resume_token;
		if (signal.aborted) end(); // hung up meanwhile
		await accept(peer, answer.sdp, CONNECT_MS);
		timer = setInterval(watch, 1000, 1000 * answer.resume_within);
	}

	function send(message) {
		if (channel?.readyState === 'open') channel.send(JSON.stringify(message));
	}

	async function replaceTrack(other) {
		track = other;
		await peer?.getSenders()[0].replaceTrack(track);
	}

	/** By a beacon, since the page may be going away. */
	function end() {
		if (url) navigator.sendBeacon(`${url}/end`, JSON.stringify({ resume_token: token }));
		url = undefined;
		clearInterval(timer);
		stop.abort();
		peer?.close();
	}

	async function stats() {
		const rows = [...(await peer?.getStats() ?? new Map()).values()];
		const find = (test) => rows.find(test) ?? {}, sound = find(({ type }) => type === 'inbound-rtp');
		const pair = find(({ type, nominated }) => type === 'candidate-pair' && nominated);
		return {
			roundTripMs: pair.currentRoundTripTime * 1000,
			jitterBufferMs: sound.jitterBufferDelay / sound.jitterBufferEmittedCount * 1000,
			packetsReceived: sound.packetsReceived,
			packetsLost: sound.packetsLost,
			concealed: sound.concealedSamples / sound.totalSamplesReceived,
			route: find(({ id }) => id === pair.localCandidateId).candidateType,
		};
	}

	function newPeer() {
		const made = new RTCPeerConnection(options), messages = made.createDataChannel('tandem');
		made.addTrack(track);
		messages.onopen = () => { channel = messages; on.open(); };
		messages.onmessage = ({ data }) => on.message(JSON.parse(data));
		return made;
	}

	async function offer(from) {
		await from.setLocalDescription();
		await until(() => from.iceGatheringState === 'complete', GATHERING_MS, signal);
		const { sdp } = from.localDescription;
		if (!sdp.includes('a=candidate')) throw fault('network');
		return sdp;
	}

	async function accept(next, sdp, ms) {
		await next.setRemoteDescription({ type: 'answer', sdp });
		await until(() => /^connected|failed/.test(next.connectionState), ms, signal);
		if (next.connectionState !== 'connected') throw fault('network');
		if (next !== peer) peer.close();
		peer = next;
		quiet = packets = 0;
		on.sound(new MediaStream([peer.getReceivers()[0].track]));
		await replaceTrack(track);
	}

	/** Packets say whether the network is there; browsers' own events come late. */
	async function watch(withinMs) {
		const watched = peer, { packetsReceived } = await stats();
		if (watched !== peer || signal.aborted) return;
		quiet = packetsReceived > packets && peer.connectionState === 'connected' ? 0 : quiet + 1;
		packets = packetsReceived;
		if (quiet >= QUIET_S && !reconnecting) reconnect(Date.now() + withinMs).catch(end);
	}

	/** Offer new connections until one works or the old one does again; an ICE restart needs the old one's other end. */
	async function reconnect(deadline) {
		reconnecting = true;
		on.message({ state: 'reconnecting' });
		for (let pause = 250; quiet && Date.now() < deadline; pause = Math.min(2000, 2 * pause)) {
			const next = newPeer();
			try {
				const sdp = await offer(next);
				if (!quiet) break;
				const answer = await post(`${url}/offers`, { sdp }, token, RECONNECT_MS);
				token = answer.resume_token;
				await accept(next, answer.sdp, RECONNECT_MS);
			} catch ({ code }) {
				if (code === 'call_over') on.message({ state: 'ended', reason: 'connection_lost' });
				await until(() => !quiet, pause, signal);
			} finally {
				if (next !== peer) next.close();
			}
		}
		reconnecting = false;
		on.message(quiet ? { state: 'failed', reason: 'network' } : { state: 'talking' });
	}

	return { signal, connect, send, replaceTrack, end, stats };
}

/** An element; functions are its listeners. No HTML is parsed (Trusted Types). */
function make(tag, attributes, ...children) {
	const space = /svg|path/.test(tag) ? '2000/svg' : '1999/xhtml';
	const element = document.createElementNS(`http://www.w3.org/${space}`, tag);
	for (const [name, value] of Object.entries(attributes)) {
		if (typeof value === 'function') element.addEventListener(name, value);
		else element.setAttribute(name, value);
	}
	element.append(...children.filter(Boolean));
	return element;
}

const icon = (...lines) => make('svg', { viewBox: '0 0 24 24', 'aria-hidden': true },
	...lines.map((d) => make('path', { d })));
const WAVE = 'M3 10v4M7.5 6v12M12 3v18M16.5 7v10M21 10v4';
const MICROPHONE = 'M9 6a3 3 0 0 1 6 0v5a3 3 0 0 1-6 0zM5 11a7 7 0 0 0 14 0M12 18v3';

function makeWidget(host, root) {
	let state = 'idle', ui = {}, call, session, agree, agreed, trouble, track, audio, context, meters, timer, since;
	const utterances = new Map();
	const given = (name) => host.getAttribute(name);
	const text = (name) => given(`text-${name}`) ?? TEXTS[name];
	const tell = (type, detail) => (
		host.dispatchEvent(new CustomEvent(`tandem-${type}`, { detail, bubbles: true, composed: true })));

	async function begin() {
		if (call) return state;
		const server = new URL(given('server') ?? '.', import.meta.url);
		const mine = call = makeCall({
			open: mute, sound: hear, message: (message) => call === mine && told(message) });
		const { signal } = mine;
		addEventListener('pagehide', hangUp, { signal });
		context = new AudioContext(); // now: only a click lets it run
		audio = new Audio();
		meters = {};
		trouble = undefined;
		utterances.clear();
		ui.words?.replaceChildren();
		render();
		try {
			await openSession(server, signal);
			await askConsent(signal);
			enter('requesting-microphone');
			await openMicrophone(signal);
			enter('connecting');
			await openSession(server, signal); // a fresh one, if people took long
			await call.connect(server, session, given('ice-transport-policy') ?? 'all', track);
			since = Date.now();
			enter('talking');
		} catch (error) {
			if (!signal.aborted) finish('failed', { code: 'unavailable', ...error }.code, error.message);
		}
		return state;
	}

	function hangUp() {
		finish(since ? 'ended' : 'idle', 'caller_hung_up');
	}

	function enter(next, reason) {
		const news = next !== state;
		state = next;
		render();
		if (news) tell('state', { state, reason, recorded: session?.recorded });
	}

	async function openSession(server, signal) {
		if (session?.until > Date.now()) return;
		const body = { key: given('key') ?? 'demo', agent: given('agent'), token: given('token') };
		const tokenUrl = given('token-url');
		try {
			if (tokenUrl) body.token = (await (await fetch(tokenUrl)).json()).token;
			session = await post(`${server}api/web/sessions`, body);
			session.until = Date.now() + 1000 * (session.expires_in - 5);
		} catch (error) {
			// Browsers show a refused origin as a dead network; what needs no permission tells them apart.
			if (error.code === 'network' && await fetch(`${server}healthz`, { mode: 'no-cors' }).catch(() => {})) {
				error.code = 'wrong_origin';
			}
			throw error;
		}
		signal.throwIfAborted();
	}

	/** People agree once to the same text; throws when they don't. */
	async function askConsent(signal) {
		const { recorded } = session, asked = [given('consent'), recorded && text('recorded')].filter(Boolean).join(' ');
		if (!asked || asked === agreed || host.hasAttribute('consented') || !ui.panel) return;
		ui.notice.firstChild.textContent = asked;
		agree = () => { agreed = asked; };
		show(true);
		render();
		if (root.activeElement) focus();
		await until(() => agreed === asked, Infinity, signal);
		agree = undefined;
	}

	function told(message) {
		if (message.type === 'words') {
			write(message);
			tell('words', message);
		} else if (/ended|failed/.test(message.state)) finish(message.state, message.reason);
		else if (since && !message.type) enter(message.state); // its view comes late
	}

	function warn(code, message) {
		trouble = text(code) ?? message;
		render();
		tell('error', { code, message: trouble });
	}

	/** Nothing runs on behind this. */
	function finish(next, reason, message) {
		if (!call) return;
		call.end();
		clearInterval(timer);
		track?.stop();
		audio.srcObject = null;
		context.close();
		call = agree = track = timer = since = undefined;
		delete session?.until; // it serves once
		enter(next, reason);
		if (next === 'failed') warn(reason, message);
	}

	async function openMicrophone(signal) {
		const other = await openTrack(host.microphone, host.hasAttribute('raw'));
		if (signal.aborted) other.stop();
		signal.throwIfAborted();
		track?.stop();
		track = other;
		track.onended = changeMicrophone;
		measure('caller', new MediaStream([track]));
		apply();
	}

	async function changeMicrophone() {
		const mine = call;
		if (!track) return;
		try {
			await openMicrophone(mine.signal);
			await mine.replaceTrack(track);
			trouble = undefined;
			render();
		} catch (error) {
			if (call === mine) warn(error.code);
		}
	}

	function hear(stream) {
		const { signal } = call;
		trouble = undefined;
		audio.srcObject = stream;
		apply();
		measure('agent', stream);
		timer ??= setInterval(tick, 100);
		audio.play().catch(() => { // the call began without a click
			if (signal.aborted) return;
			warn('press_to_hear');
			addEventListener('click', () => { context.resume(); hear(stream); }, { once: true, signal });
		});
	}

	function apply() {
		if (track) track.enabled = !host.muted;
		if (audio) audio.volume = host.volume;
		render();
	}

	function mute() {
		call?.send({ type: 'mute', muted: host.muted });
		apply();
	}

	function measure(side, stream) {
		const analyser = new AnalyserNode(context), samples = new Float32Array(2048);
		context.createMediaStreamSource(stream).connect(analyser);
		meters[side] = () => {
			analyser.getFloatTimeDomainData(samples);
			return share(1 + Math.log10(Math.hypot(...samples) / 45) / 2.5); // 0 is -50 dBFS
		};
	}

	function tick() {
		const caller = meters.caller(), agent = meters.agent();
		tell('level', { caller, agent });
		if (!ui.panel) return;
		ui.meter.style.setProperty('--level', caller);
		ui.orb.style.setProperty('--level', agent);
		ui.time.textContent = new Date(Date.now() - since || 0).toISOString().slice(11, 19).replace(/^00:/, '');
	}

	root.adoptedStyleSheets = [STYLE];

	function build() {
		if (call || !host.isConnected) return;
		ui = {};
		root.replaceChildren();
		if (given('mode') === 'headless') return;
		const floating = /floating|null/.test(given('mode'));
		const part = (name, tag, attributes, ...children) => (
			ui[name] = make(tag, { part: name, class: name, ...attributes }, ...children));
		const button = (name, click, ...children) => part(name, 'button', { type: 'button', click }, ...children);
		const label = (name, child) => make('label', {}, text(name), child);
		part('meter', 'span', {});
		button('launcher', () => show(ui.panel.hidden), icon(WAVE), part('launch', 'span', {}));
		part('panel', 'section', { role: floating ? 'dialog' : 'group', 'aria-label': text('title'),
			keydown: ({ key }) => key === 'Escape' && show(false) },
			part('header', 'div', {},
				part('orb', 'span', {}, icon(WAVE)),
				make('div', {}, part('title', 'p', {}, text('title')), part('status', 'p', { role: 'status' })),
				part('time', 'span', { 'aria-hidden': true }),
				button('close', () => show(false), icon('M6 6l12 12M18 6L6 18'))),
			part('intro', 'p', {}, text('intro')),
			part('notice', 'div', {}, make('p', {}),
				given('privacy-url') && make('a', { href: given('privacy-url'), target: '_blank' }, text('privacy'))),
			part('words', 'div', { role: 'log', 'aria-label': text('words'), 'aria-relevant': 'additions', tabindex: 0 }),
			part('sound', 'details', { toggle: list }, make('summary', {}, text('sound')),
				label('microphone', part('select', 'select', { change: () => { host.microphone = ui.select.value; } })),
				label('volume', part('volume', 'input', {
					type: 'range', input: () => { host.volume = ui.volume.value / 100; } }))),
			button('start', () => (agree ?? begin)()),
			part('controls', 'div', {},
				button('mute', () => { host.muted = !host.muted; }, icon(MICROPHONE, 'M4 4l16 16'), ui.meter),
				button('hangup', hangUp)));
		ui.mute.ariaLabel = text('mute');
		ui.close.ariaLabel = text('close');
		ui.panel.hidden = floating;
		ui.launcher.hidden = ui.close.hidden = !floating;
		root.append(ui.panel, ui.launcher);
		render();
	}

	function render() {
		if (!ui.panel) return;
		const running = !!call, talking = !!since, asking = !!agree, over = /ended|failed/.test(state);
		const opening = running && !talking && !asking, quiet = asking || !(talking || utterances.size);
		for (const [name, on] of Object.entries({ running, talking, asking, opening, quiet, failed: state === 'failed' })) {
			ui.panel.classList.toggle(name, on);
		}
		const shown = opening && !/ing/.test(state) ? 'connecting' : host.muted && state === 'talking' ? 'muted' : state;
		const status = trouble ?? text(shown);
		if (ui.status.textContent !== status) ui.status.textContent = status; // or it is read again
		ui.start.textContent = text(!asking ? (over ? 'again' : 'start') : session.recorded ? 'agree_recorded' : 'agree');
		ui.hangup.textContent = text(asking ? 'decline' : 'hangup');
		ui.mute.ariaPressed = host.muted;
		ui.volume.value = 100 * host.volume;
		ui.launch.textContent = text(talking ? state : 'launch');
		ui.launcher.ariaExpanded = !ui.panel.hidden;
		if (root.activeElement?.getClientRects().length === 0) focus();
	}

	function focus() {
		(ui.start.getClientRects().length ? ui.start : ui.hangup).focus();
	}

	function show(open) {
		if (ui.panel?.hidden !== open || ui.launcher.hidden) return;
		ui.panel.hidden = !open;
		render();
		open ? focus() : ui.launcher.focus();
	}

	async function list() {
		const all = [{ id: '', label: text('default') }, ...await host.microphones()];
		ui.select.replaceChildren(...all.map(({ id, label }) => make('option', { value: id }, label)));
		ui.select.value = host.microphone;
		ui.words.scrollTop = ui.words.scrollHeight;
	}

	/** Screen readers skip a growing utterance and read the whole one. */
	function write({ id, speaker, text: said, final }) {
		const { words } = ui, name = `utterance ${speaker}`;
		if (!words) return;
		const utterance = make('p', { part: name, class: name, 'aria-hidden': !final },
			make('span', { class: 'who' }, text(speaker)), make('span', { class: 'said' }, said));
		const atEnd = words.scrollHeight - words.scrollTop - words.clientHeight < 40;
		if (utterances.has(id)) utterances.get(id).replaceWith(utterance);
		else words.append(utterance);
		utterances.set(id, utterance);
		if (words.childElementCount > 200) words.firstChild.remove();
		if (atEnd) words.scrollTop = words.scrollHeight;
	}

	const now = () => state, stats = async () => call?.stats();
	return { begin, hangUp, show, now, stats, build, muted: mute, volume: apply, microphone: changeMicrophone };
}

customElements.define('tandem-call', class TandemCall extends HTMLElement {
	static observedAttributes = ['mode', 'muted', 'volume', 'microphone',
		...Object.keys(TEXTS).map((name) => `text-${name}`)];

	#widget = makeWidget(this, this.attachShadow({ mode: 'open' }));

	get state() { return this.#widget.now(); }
	get muted() { return this.hasAttribute('muted'); }
	set muted(muted) { this.toggleAttribute('muted', muted); }
	get volume() { return share(this.getAttribute('volume') ?? 1); }
	set volume(volume) { this.setAttribute('volume', volume); }
	get microphone() { return this.getAttribute('microphone') ?? ''; }
	set microphone(id) { this.setAttribute('microphone', id); }
	call() { return this.#widget.begin(); }
	hangUp() { this.#widget.hangUp(); }
	open() { this.#widget.show(true); }
	close() { this.#widget.show(false); }
	stats() { return this.#widget.stats(); }

	async microphones() {
		const devices = await navigator.mediaDevices?.enumerateDevices() ?? [];
		return devices.filter(({ kind }) => kind === 'audioinput').map(({ deviceId: id, label }) => ({ id, label }));
	}

	connectedCallback() {
		this.#widget.build();
	}

	disconnectedCallback() {
		queueMicrotask(() => this.isConnected || this.hangUp()); // not when it is only moved
	}

	attributeChangedCallback(name) {
		(this.#widget[name] ?? this.#widget.build)();
	}
});
