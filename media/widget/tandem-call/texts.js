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

