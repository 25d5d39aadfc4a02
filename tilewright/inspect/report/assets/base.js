// Elements, numbers, and the state, which is the fragment of the address: #tab?pass=8&tensor=…
const started = performance.now();
const data = JSON.parse(document.getElementById('data').textContent);
const texts = data.texts;

function h(tag, props, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(props || {})) {
    if (value === undefined || value === null || value === false) continue;
    if (key === 'class') node.className = value;
    else if (key.startsWith('on')) node.addEventListener(key.slice(2), value);
    else if (key === 'style') node.style.cssText = value;
    else node.setAttribute(key, value === true ? '' : value);
  }
  node.append(...children.flat(Infinity).filter((c) => c !== null && c !== undefined && c !== false && c !== ''));
  return node;
}

function svg(tag, props, ...children) {
  const node = document.createElementNS('http://www.w3.org/2000/svg', tag);
  for (const [key, value] of Object.entries(props)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

const count = (n) => n.toLocaleString('en-US');

function bytes(n) {
  if (n === null || n === undefined) return '–';
  for (const unit of ['B', 'KB', 'MB', 'GB']) {
    if (n < 1000 || unit === 'GB') return `${unit === 'B' ? n : Number(n.toPrecision(3))} ${unit}`;
    n /= 1000;
  }
}

const two = (n) => String(n).padStart(2, '0');
const spaced = (text) => text.replace(/ {3}/g, ' · '); // columns of a printed line
const lower = (text) => text.toLowerCase();

// Text with `code` in it.
function prose(text) {
  return text.split('`').map((part, at) => (at % 2 ? h('code', {}, part) : part));
}

const TABS = ['overview', 'passes', 'kernels', 'time', 'accuracy', 'modules'];
const KEPT = { overview: [], passes: ['pass', 'tensor', 'show', 'views', 'weights'], kernels: ['kernel', 'code', 'sort'], time: ['sort', 'profile'], accuracy: ['sort'], modules: ['module'] };
let state = read();

function read() {
  const [tab, rest] = (location.hash || document.documentElement.dataset.start).slice(1).split('?');
  const found = { tab: TABS.includes(tab) ? tab : 'overview' };
  for (const [key, value] of new URLSearchParams(rest || '')) found[key] = value;
  return found;
}

// The fragment of the state with changes; what belongs to another tab is left out, the theme stays.
function link(changes) {
  const next = { ...state, ...changes };
  const params = new URLSearchParams();
  for (const key of [...KEPT[next.tab], 'theme']) {
    const stays = key === 'theme' || next.tab === state.tab || key in changes;
    if (stays && next[key] !== undefined && next[key] !== null && next[key] !== '') params.set(key, next[key]);
  }
  const query = params.toString();
  return `#${next.tab}${query ? `?${query}` : ''}`;
}

// quietly: without a step for the back button, as for a key that is held down.
function go(changes, quietly) {
  const next = link(changes);
  if (next === location.hash) return;
  if (quietly && location.protocol !== 'about:') { // which has no address to replace
    history.replaceState(null, '', next);
    dispatchEvent(new HashChangeEvent('hashchange'));
  } else location.hash = next;
}
