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

