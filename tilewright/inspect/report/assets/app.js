// The frame: tabs, keys, theme; and drawing what the fragment says.
const NAMES = { overview: 'Overview', passes: 'Passes', kernels: 'Kernels', time: 'Time', accuracy: 'Accuracy', modules: 'Modules' };
const main = document.getElementById('main');
const systemDark = matchMedia('(prefers-color-scheme: dark)');

const VIEWS_OF = {
  overview: renderOverview,
  passes: renderPasses,
  kernels: renderKernels,
  modules: renderModules,
  time: renderTime,
  accuracy: renderAccuracy,
};

const isDark = () => (state.theme ? state.theme === 'dark' : systemDark.matches);

function render() {
  state = read();
  const focus = document.activeElement && document.activeElement.dataset ? document.activeElement.dataset.focus : null;
  document.documentElement.dataset.theme = isDark() ? 'dark' : 'light';
  document.getElementById('tabs').replaceChildren(...TABS.map((tab, index) => h('a', {
    href: link({ tab }), 'aria-current': tab === state.tab ? 'page' : null, title: `${index + 1}`, 'data-focus': `tab-${tab}`,
  }, NAMES[tab])));
  const theme = document.getElementById('theme');
  theme.setAttribute('href', link({ theme: isDark() ? 'light' : 'dark' }));
  theme.textContent = isDark() ? '☀ light' : '☾ dark';
  theme.dataset.focus = 'theme';
  if (state.tab !== 'passes') view = null;
  main.className = state.tab;
  VIEWS_OF[state.tab](main);
  document.title = `${data.title} · ${NAMES[state.tab]}${state.tab === 'passes' && state.pass ? ` ${state.pass}` : ''}`;
  const again = focus && !document.activeElement.dataset.focus ? document.querySelector(`[data-focus="${CSS.escape(focus)}"]`) : null;
  if (again) again.focus({ preventScroll: true });
}

function onKey(event) {
  const target = event.target;
  if (target.tagName === 'INPUT' || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === '/') {
    event.preventDefault();
    document.getElementById('search').focus();
    document.getElementById('search').select();
  } else if (/^[1-6]$/.test(event.key)) go({ tab: TABS[Number(event.key) - 1] });
  else if ((event.key === 'j' || event.key === 'k') && state.tab === 'passes') movePass(event.key === 'j' ? 1 : -1);
  else if (event.key === 'Escape' && state.tab === 'passes' && state.tensor) go({ tensor: null });
  else if (event.key === 'Escape' && state.tab === 'kernels' && state.kernel) go({ kernel: null, code: null });
  else if (event.key === ' ' && target.getAttribute('role') === 'button') {
    event.preventDefault();
    target.click();
  }
}

document.getElementById('brand').append(h('b', {}, 'tilewright'), h('span', {}, data.title), data.target ? h('span', { class: 'quiet' }, data.target) : '');
startSearch();
addEventListener('hashchange', render);
addEventListener('keydown', onKey);
addEventListener('click', (event) => { // a page inside a frame has its parent's address as its base
  const anchor = location.protocol === 'about:' && event.target.closest('a[href^="#"]');
  if (!anchor) return;
  event.preventDefault();
  location.hash = anchor.getAttribute('href');
});
systemDark.addEventListener('change', render);
document.getElementById('page').hidden = false;
render();
document.documentElement.dataset.ready = (performance.now() - started).toFixed(1);
