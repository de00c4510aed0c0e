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

const share = (number) => Math.min(1, Math.max(0, number)) || 0;

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

