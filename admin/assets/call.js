// A call: words in step with its recording. Press one to hear it there; with the keyboard, arrows go from word to word.

const sound = document.getElementById('sound');
const lanes = document.getElementById('lanes');
const story = document.getElementById('words');
const words = [...document.querySelectorAll('.w')];
const boxes = [...document.querySelectorAll('.lanes .word')];
const scale = Number(lanes?.querySelector('svg').dataset.scale ?? 0);

function hear(start_s) {
  if (!sound) return;
  sound.currentTime = start_s;
  sound.play();
}

function follow() {
  const at = sound.currentTime;
  for (const word of words) word.classList.toggle('now', Number(word.dataset.start) <= at && at < Number(word.dataset.end));
  for (const box of boxes) {
    const rect = box.firstElementChild, from = Number(rect.getAttribute('x')) / scale;
    box.classList.toggle('now', from <= at && at < from + Number(rect.getAttribute('width')) / scale);
  }
  const head = document.getElementById('head');
  head?.setAttribute('x1', scale * at);
  head?.setAttribute('x2', scale * at);
  if (!sound.paused) {
    if (lanes && (scale * at < lanes.scrollLeft || scale * at > lanes.scrollLeft + lanes.clientWidth - 80)) {
      lanes.scrollLeft = scale * at - 80;
    }
    requestAnimationFrame(follow);
  }
}

for (const within of [lanes, story]) {
  within?.addEventListener('click', ({ target }) => {
    const pressed = target.closest('[data-start]');
    if (pressed) hear(Number(pressed.dataset.start));
  });
}
story?.addEventListener('keydown', (event) => {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!step) return;
  const line = event.target.closest('li'), stops = [...line.querySelectorAll('button')];
  stops[stops.indexOf(event.target) + step]?.focus();
  event.preventDefault();
});
sound?.addEventListener('play', follow);
sound?.addEventListener('seeked', follow);

const asked = /^#at=([\d.]+)$/.exec(location.hash);
if (asked && lanes) {
  lanes.scrollLeft = scale * Number(asked[1]) - 80;
  const line = story.querySelector(`.at[data-start="${asked[1]}"]`);
  line?.closest('li').scrollIntoView({ block: 'center' });
  if (sound) sound.currentTime = Number(asked[1]);
}
