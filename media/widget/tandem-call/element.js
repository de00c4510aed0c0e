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
