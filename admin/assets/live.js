// Live: a card for each call that runs. Events come as they happen; the stream begins anew with a snapshot by itself.
import { clock, element, twice } from './common.js';
import { Line } from './listen.js';

const FRAME_S = 0.08;
const LINES = 60, CHIPS = 6, FRAMES = 64; // that a card keeps
const OVER_S = 20; // for which a call that has ended stays
const TRANSPORTS = { sip: 'phone', webrtc: 'browser', chat: 'Moshi client' };
const ACTS = { s: 'speak', h: 'hold', m: 'mute', r: 'release', a: 'reprime', p: 'record', x: 'hang_up', l: 'listen', o: 'talk' };
const TALKS_WITHIN_MS = 5000; // or the microphone is closed again
const NAMES = { pad: 'PAD', epad: 'EPAD', other: 'no text' }, SIGNS = { pad: '\u00b7', epad: '\u25b8', other: '\u2205' };
const WORD_MARK = '\u2581'; // before a word's first piece
const EAR = { connecting: 'Connecting …', listening: 'You hear both sides; nobody hears you.', talking: 'You talk to the caller; the agent is silent.' };

const token = document.querySelector('meta[name=form-token]').content;
const [state, none, keys, legend, spoken, list] = ['state', 'none', 'keys', 'legend', 'spoken', 'calls'].map((id) => document.getElementById(id));
const cards = new Map();
let ahead_s = 0; // of the server's clock
let ear = null; // on one call at a time

const now_s = () => Date.now() / 1000 + ahead_s;
const nameOf = (action, mute) => `${action.replaceAll('_', ' ')}${mute ? ' muted' : ''}`;
const seconds = (at) => new Date(at).getTime() / 1000;

class Card {
  constructor(call) {
    this.call = call;
    this.root = document.getElementById('card').content.firstElementChild.cloneNode(true);
    this.root.id = call.id;
    this.lines = new Map();
    this.chips = new Map();
    this.log = this.find('.log');
    this.paused = false;
    this.shown_s = now_s();
    this.talker = '';
    this.written_k = -1;
    this.tell();
    this.find('.caller').href = `/admin/calls/${encodeURIComponent(call.id)}`;
    this.log.append(element('p', 'nothing', 'Nobody has spoken yet.'));
    for (const one of call.utterances ?? []) this.utterance(one);
    for (const one of call.controls ?? []) this.control(one);
    this.hear();
    list.prepend(this.root);
    this.follow();
  }

  // The newest words stay in sight, however wide the card gets, until one scrolls away from them.
  follow() {
    const { log } = this, toEnd = () => { log.scrollTop = log.scrollHeight; };
    this.follows = true;
    log.addEventListener('scroll', () => { this.follows = log.scrollHeight - log.scrollTop - log.clientHeight < 40; });
    new ResizeObserver(() => { if (this.follows) toEnd(); }).observe(log);
    toEnd();
  }

  find(selector) { return this.root.querySelector(selector); }

  hear() {
    this.buttons = {};
    for (const button of this.root.querySelectorAll('[data-act]')) {
      const { act, mute } = button.dataset;
      const name = mute === undefined ? act.replace('pause_recording', 'record') : 'mute';
      const press = {
        mute: () => this.give('hold', { mute: true }),
        record: () => this.give(this.paused ? 'resume_recording' : 'pause_recording'),
        hang_up: twice(button, 'Really?', () => this.give('hang_up')),
      }[name] ?? (() => this.give(act));
      button.addEventListener('click', press);
      this.buttons[name] = button;
    }
    for (const button of this.root.querySelectorAll('[data-ear]')) {
      button.addEventListener('click', () => (button.dataset.ear === 'listen' ? this.listen() : this.talk()));
      this.buttons[button.dataset.ear] = button;
    }
    this.tellEar();
    const form = this.find('.say');
    form?.addEventListener('submit', (event) => {
      event.preventDefault();
      this.give('say', { text: form.elements.text.value });
      form.reset();
    });
    // Letters alone, but only within the card, and not while one types.
    this.root.addEventListener('keydown', (event) => {
      if (event.ctrlKey || event.altKey || event.metaKey) return;
      if (event.key === 'Escape') this.root.focus();
      if (event.target.matches('input')) return;
      const key = event.key.toLowerCase();
      if (key === 't' && form) form.elements.text.focus();
      else if (this.buttons[ACTS[key]]) this.buttons[ACTS[key]].click();
      else return;
      event.preventDefault();
    });
  }

  tell() {
    const { caller, agent, protocol, worker, ended_at: over, end_reason: reason } = this.call;
    const [user, ...host] = (caller?.replace(/^sip:/, '') || 'Somebody').split(/(?=@)/); // a narrow card breaks it there
    this.find('.caller').replaceChildren(user, element('wbr'), host.join(''));
    this.root.setAttribute('aria-label', `Call of ${caller || 'somebody'}`);
    const facts = [`to ${agent ?? '…'}`, TRANSPORTS[protocol], worker, over && `ended: ${(reason ?? '').replaceAll('_', ' ')}`];
    this.find('.facts').textContent = facts.filter(Boolean).join(' · ');
    this.root.classList.toggle('over', Boolean(over));
    for (const one of this.root.querySelectorAll('button, input')) one.disabled = Boolean(over);
    this.tellEar();
    this.tick();
  }

  tick() {
    const { answered_at: from, ended_at: to } = this.call;
    this.find('.since').textContent = from ? clock((to ? seconds(to) : now_s()) - seconds(from)) : 'rings';
  }

  utterance({ speaker, first_k: k, text, final }) {
    if (!text) return;
    this.find('.nothing')?.remove();
    const key = `${speaker} ${k}`;
    let line = this.lines.get(key);
    if (!line) {
      line = element('p', speaker);
      line.dataset.k = k;
      line.append(element('b', '', speaker), element('span'));
      this.lines.set(key, line);
      const later = [...this.log.children].find((other) => Number(other.dataset.k) > k);
      this.log.insertBefore(line, later ?? null);
    }
    if (final && line.classList.contains('growing')) this.announce(`${speaker}: ${text}`);
    line.lastElementChild.textContent = text;
    line.classList.toggle('growing', !final);
    while (this.lines.size > LINES) {
      const [oldest] = this.lines.keys();
      this.lines.get(oldest).remove();
      this.lines.delete(oldest);
    }
    if (this.follows) this.log.scrollTop = this.log.scrollHeight;
  }

  // The model's own text: a cell for each step; below what was forced or barred stands what it wanted.
  monologue(frames) {
    const tape = this.find('.tape');
    for (const frame of frames) {
      if (frame.k <= this.written_k) continue; // told twice
      this.written_k = frame.k;
      tape.append(cell(frame));
      this.find('.writes').textContent = inWords(frame);
    }
    while (tape.childElementCount > FRAMES) tape.firstElementChild.remove();
    this.find('.monologue').hidden = false;
  }

  control({ id, action, text, mute, by, outcome, first_k: k, why }) {
    const done = `${nameOf(action, mute)}: ${outcome.replaceAll('_', ' ')}${why ? `, ${why}` : ''}`;
    const told = this.chips.get(id)?.dataset.done === done; // it goes on
    this.chip(id, [done, clock(FRAME_S * k), by, text && `“${text}”`].filter(Boolean).join(' · '),
      outcome === 'refused' ? 'failed' : '', done);
    if (outcome === 'talking' || outcome === 'talked') this.talks(id, outcome === 'talking' ? by : '');
    if (outcome === 'held') this.held(mute ? 'mute' : 'hold');
    if (['released', 'spoke'].includes(outcome)) this.held('');
    if (outcome === 'done' && action.endsWith('_recording')) {
      this.paused = action === 'pause_recording';
      this.buttons?.record && (this.buttons.record.textContent = this.paused ? 'Resume recording' : 'Pause recording');
    }
    if (!told) this.announce(done);
  }

  held(how) {
    this.how = how;
    for (const name of ['hold', 'mute']) {
      this.find(`[data-act=hold]${name === 'mute' ? '[data-mute]' : ':not([data-mute])'}`)
        ?.setAttribute('aria-pressed', String(how === name));
    }
  }

  chip(id, text, className, done = '') {
    const chip = this.chips.get(id) ?? element('li');
    chip.dataset.done = done;
    chip.className = className;
    chip.textContent = chip.title = text;
    if (!this.chips.has(id)) this.find('.strip').prepend(chip);
    this.chips.set(id, chip);
    while (this.chips.size > CHIPS) {
      const [oldest] = this.chips.keys();
      this.chips.get(oldest).remove();
      this.chips.delete(oldest);
    }
  }

  async give(action, what = {}) {
    const id = crypto.randomUUID?.() ?? String(Math.random()).slice(2);
    const name = nameOf(action, what.mute);
    this.chip(id, `${name} …${what.text ? ` “${what.text}”` : ''}`, 'waits');
    const failed = (why) => { this.chip(id, `${name}: ${why}`, 'failed'); this.announce(`${name}: ${why}`); };
    try {
      const answer = await fetch(`/admin/calls/${encodeURIComponent(this.call.id)}/controls`, {
        method: 'POST', headers: { 'Content-Type': 'application/json', 'X-Form-Token': token },
        body: JSON.stringify({ id, action, ...what }), signal: AbortSignal.timeout(10000) });
      if (answer.status === 401) signIn();
      else if (!answer.ok) failed((await answer.json()).message);
      else return true;
    } catch {
      failed('the server can’t be reached.');
    }
    return false;
  }

  // an operator's ear and voice

  get line() { return ear?.call === this.call.id ? ear : null; }

  listen() {
    if (this.line) ear.end();
    else this.begin();
  }

  begin() {
    ear?.end();
    const id = this.call.id, line = ear = new Line(id, ask, (state, reason) => {
      if (state === 'ended' && ear === line) ear = null;
      spoken.textContent = reason || EAR[state] || 'You don’t listen any more.';
      cards.get(id)?.tellEar(reason);
    });
    return line.open();
  }

  async talk() {
    if (this.line?.state === 'talking') {
      await this.give('hand_back');
      return;
    }
    if (!this.line) await this.begin();
    const line = this.line;
    if (!line?.tap) return;
    try {
      await line.openMicrophone();
    } catch ({ message }) {
      spoken.textContent = message;
      this.tellEar(message);
      return;
    }
    if (!await this.give('take_over', { tap: line.tap })) line.closeMicrophone();
    else setTimeout(() => line.state !== 'talking' && line.closeMicrophone(), TALKS_WITHIN_MS);
  }

  talks(id, by) {
    if (!by && this.talking !== id) return; // another's, before
    this.talking = id;
    this.talker = by;
    this.tellEar();
  }

  tellEar(fault = '') {
    const { listen, talk } = this.buttons ?? {};
    if (!listen) return;
    const state = this.line?.state, others = this.talker && state !== 'talking', over = Boolean(this.call.ended_at);
    listen.textContent = state ? 'Stop listening' : 'Listen';
    listen.setAttribute('aria-pressed', String(Boolean(state)));
    talk.textContent = state === 'talking' ? 'Hand back' : 'Take over';
    talk.setAttribute('aria-pressed', String(state === 'talking'));
    listen.disabled = over;
    talk.disabled = over || Boolean(others) || state === 'connecting';
    const said = this.find('.ear p');
    said.textContent = fault || [EAR[state], others && `${this.talker} talks to the caller.`].filter(Boolean).join(' ');
    said.classList.toggle('failed', Boolean(fault));
  }

  announce(text) { if (this.root.contains(document.activeElement)) spoken.textContent = text; }
}

const isAgainst = ({ how, token, piece, wanted, wanted_piece: other }) => how !== 'free' && (token !== wanted || piece !== other);
const textOf = (piece) => piece.replace(WORD_MARK, '') || '\u2423';
const named = (token, piece) => (token === 'piece' ? `\u201c${textOf(piece)}\u201d` : NAMES[token]);

function cell(frame) {
  const { token, piece, how, muted, wanted, wanted_piece: other } = frame;
  const root = element('li', [token, how, muted && 'muted', piece.startsWith(WORD_MARK) && 'begins'].filter(Boolean).join(' '));
  root.append(...signs(token, piece), ...(how === 'free' ? [] : [element('span', 'unseen', ` ${how}`)]));
  if (isAgainst(frame)) {
    const below = element('small');
    below.append(element('span', 'unseen', ', wanted '), ...signs(wanted, other));
    root.append(below);
  }
  return root;
}

// A token as one sees it, and as it is read out.
function signs(token, piece) {
  if (token === 'piece') return [element('span', 'took', textOf(piece))];
  const sign = element('span', 'took', SIGNS[token]);
  sign.setAttribute('aria-hidden', 'true');
  return [sign, element('span', 'unseen', NAMES[token])];
}

function inWords(frame) {
  const { token, piece, how, muted, wanted, wanted_piece: other } = frame;
  return [named(token, piece), how !== 'free' && how, muted && 'muted', isAgainst(frame) && `wanted ${named(wanted, other)}`]
    .filter(Boolean).join(', ');
}

// What a script of ours asks: GET without a body, POST with one. Throws an Error to read.
async function ask(path, body) {
  let answer;
  try {
    answer = await fetch(path, body === undefined ? { signal: AbortSignal.timeout(10000) } : {
      method: 'POST', headers: { 'Content-Type': 'application/json', 'X-Form-Token': token },
      body: JSON.stringify(body), signal: AbortSignal.timeout(10000) });
  } catch {
    throw new Error('The server can’t be reached.');
  }
  if (answer.status === 401) signIn();
  const content = answer.status === 204 ? null : await answer.json();
  if (!answer.ok) throw Object.assign(new Error(content.message), { status: answer.status });
  return content;
}

function signIn() {
  location.assign(`/login?next=${encodeURIComponent(location.pathname)}`);
}

function show(call) {
  cards.get(call.id)?.root.remove();
  cards.set(call.id, new Card(call));
}

function drop(id) {
  cards.get(id)?.root.remove();
  cards.delete(id);
}

function count() {
  const running = [...cards.values()].filter(({ call }) => !call.ended_at).length;
  state.textContent = running === 1 ? '1 call' : `${running} calls`;
  none.hidden = cards.size > 0;
  if (keys) keys.hidden = cards.size === 0;
  legend.hidden = ![...cards.values()].some(({ written_k: k }) => k >= 0);
}

const TAKE = {
  snapshot({ now, calls }) {
    ahead_s = seconds(now) - Date.now() / 1000;
    const focused = document.activeElement?.closest('.card')?.id;
    const begun = new Map([...cards].map(([id, card]) => [id, card.find('.say input')?.value])); // lines that are typed
    for (const id of [...cards.keys()]) drop(id);
    for (const call of [...calls].reverse()) {
      show(call);
      if (begun.get(call.id)) cards.get(call.id).find('.say input').value = begun.get(call.id);
    }
    if (focused) cards.get(focused)?.root.focus();
    else if (location.hash) cards.get(decodeURIComponent(location.hash.slice(1)))?.root.focus();
  },
  received({ call, at, type, ...facts }) { if (!cards.has(call)) show({ id: call, received_at: at, ...facts }); },
  leased({ call, model, worker }) { change(call, { model, worker }); },
  moved({ call, worker }) { change(call, { worker }); },
  answered({ call, at }) { change(call, { answered_at: at }); },
  ended({ call, at, reason }) { change(call, { ended_at: at, end_reason: reason }); },
  utterance({ call, ...said }) { cards.get(call)?.utterance(said); },
  control({ call, ...done }) { cards.get(call)?.control(done); },
  monologue({ call, frames }) { cards.get(call)?.monologue(frames); },
  signed_out: signIn,
  running({ calls }) {
    const there = new Set(calls);
    for (const { call, shown_s: since_s } of [...cards.values()]) {
      const over = call.ended_at ? now_s() - seconds(call.ended_at) > OVER_S : now_s() - since_s > OVER_S;
      if (!there.has(call.id) && over) drop(call.id);
    }
    if (calls.some((id) => !cards.has(id))) connect(); // it began before we could see it
  },
};

function change(id, facts) {
  const card = cards.get(id);
  if (!card) return;
  Object.assign(card.call, facts);
  card.tell();
}

let stream = null;
function connect() {
  stream?.close();
  stream = new EventSource('/admin/events');
  stream.onmessage = ({ data }) => {
    const message = JSON.parse(data);
    TAKE[message.type]?.(message);
    count();
  };
  stream.onerror = async () => {
    state.textContent = 'Connecting again …';
    if (stream.readyState !== EventSource.CLOSED) return; // it tries again by itself
    const answer = await fetch('/admin/events', { method: 'GET', signal: AbortSignal.timeout(3000) }).catch(() => null);
    if (answer?.status === 401) signIn();
    answer?.body?.cancel();
    setTimeout(connect, 3000);
  };
}

// A browser keeps six connections to a server: pages that nobody looks at leave theirs to others.
document.addEventListener('visibilitychange', () => {
  if (!document.hidden) connect();
  else stream?.close();
});
addEventListener('pagehide', () => ear?.end());
setInterval(() => { for (const card of cards.values()) card.tick(); }, 1000);
connect();
