// The demo page: who answers, and the lines to copy.

const widget = document.querySelector('tandem-call');
const snippet = document.querySelector('#snippet');
const copy = document.querySelector('#copy');
const TITLES = { agent: 'The agent', echo: 'The echo' };
const HEADLESS = `
<!-- and in your own script: document.querySelector('tandem-call').call() -->`;

const chosen = (name) => document.querySelector(`input[name=${name}]:checked`).value;

function write() {
  const mode = chosen('mode');
  snippet.textContent = `<script type="module" src="${location.origin}/tandem-call.js"></script>
<tandem-call key="demo" agent="${chosen('agent')}"${mode === 'floating' ? '' : ` mode="${mode}"`}></tandem-call>`
    + (mode === 'headless' ? HEADLESS : '');
}

addEventListener('change', ({ target }) => {
  if (target.name === 'agent') {
    widget.setAttribute('agent', target.value);
    widget.setAttribute('text-title', TITLES[target.value]);
  }
  if (target.type === 'radio') write();
});

// Who answers can't be changed while somebody does.
widget.addEventListener('tandem-state', ({ detail: { state } }) => {
  const running = !['idle', 'ended', 'failed'].includes(state);
  for (const input of document.querySelectorAll('input[name=agent]')) input.disabled = running;
});

copy.addEventListener('click', async () => {
  getSelection().selectAllChildren(snippet);
  await navigator.clipboard?.writeText(snippet.textContent); // HTTPS alone has it
  copy.textContent = 'Copied';
  setTimeout(() => { copy.textContent = 'Copy'; }, 2000);
});

write();
