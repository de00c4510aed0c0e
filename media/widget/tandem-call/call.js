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

