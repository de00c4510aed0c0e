// What all pages have in common: times in the viewer's zone, tables that keep themselves fresh, a second thought.

const told = new Intl.DateTimeFormat(undefined, { dateStyle: 'medium', timeStyle: 'medium' });

export function tellTimes(within) {
  for (const each of within.querySelectorAll('time')) {
    each.title = each.dateTime;
    each.textContent = told.format(new Date(each.dateTime));
  }
}

export function clock(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, '0')}`;
}

export function element(name, className = '', text = '') {
  const made = document.createElement(name);
  made.className = className;
  made.textContent = text;
  return made;
}

// A button that does nothing at the first press but ask.
export function twice(button, question, act) {
  const name = button.textContent;
  let sure = 0;
  const calm = () => { clearTimeout(sure); sure = 0; button.textContent = name; button.classList.remove('sure'); };
  return () => {
    if (sure) { calm(); act(); return; }
    button.textContent = question;
    button.classList.add('sure');
    sure = setTimeout(calm, 4000);
  };
}

// The same page again, as a document: no string of it becomes HTML here.
function loaded(address) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open('GET', address);
    request.responseType = 'document';
    request.timeout = 10000;
    request.onload = () => resolve(request.status === 200 ? request.response : null);
    request.onerror = request.ontimeout = reject;
    request.send();
  });
}

async function refresh(part) {
  if (document.hidden || part.contains(document.activeElement)) return;
  const place = [...document.querySelectorAll('[data-refresh]')].indexOf(part);
  const fresh = (await loaded(location.href).catch(() => null))?.querySelectorAll('[data-refresh]')[place];
  if (!fresh) return;
  part.replaceChildren(...document.adoptNode(fresh).childNodes);
  tellTimes(part);
}

tellTimes(document);
for (const part of document.querySelectorAll('[data-refresh]')) {
  setInterval(() => refresh(part), 1000 * Number(part.dataset.refresh));
}
for (const form of document.querySelectorAll('form[data-confirm]')) {
  const press = twice(form.querySelector('button'), form.dataset.confirm, () => form.submit());
  form.addEventListener('submit', (event) => { event.preventDefault(); press(); });
}
for (const button of document.querySelectorAll('[data-copy]')) {
  button.addEventListener('click', async () => {
    await navigator.clipboard.writeText(document.getElementById(button.dataset.copy).textContent);
    button.textContent = 'Copied';
  });
}
