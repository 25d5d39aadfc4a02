// Where the time of a step goes: its parts beside the whole, kernels under the machine's roof, and each with what it wastes.
const us = (n) => (n >= 100 ? n.toFixed(0) : n >= 10 ? n.toFixed(1) : n.toFixed(2));
const perSecond = (n, unit) => `${(n / 1e12).toPrecision(3)} T${unit}/s`;
const wastedUs = (row) => (row.least_us === null ? null : Math.max(0, row.us - row.least_us));
const shareOf = (row) => (row.least_us === null || !row.us ? null : row.least_us / row.us);

function stepBars(step) {
  const best = step.read_limit ? step.kernels.reduce((sum, row) => sum + row.least_us, 0) : null;
  const rows = [['launches one by one', step.sum_us], ['together', step.step_us], [step.samples ? 'a whole step, with the host' : 'a whole step, with sampling and host', step.wall_us]];
  if (best !== null) rows.unshift(['at the limits of the machine', best]);
  const most = Math.max(...rows.map(([, time]) => time)) || 1;
  return h('table', { class: 'waterfall' }, h('tbody', {}, rows.filter(([, time]) => time > 0).map(([label, time]) => h('tr', {}, h('td', {}, label), h('td', { class: 'num' }, `${us(time)} µs`),
    h('td', { class: 'bars' }, h('div', { class: 'barline' }, h('span', { class: 'fill', style: `width:${((100 * time) / most).toFixed(2)}%` })))))));
}

// Sideways, until no mark covers another one.
function moveApart(marks, left, right) {
  for (let round = 0, moved = true; moved && round < 200; round++) {
    moved = false;
    for (const [at, a] of marks.entries()) for (const b of marks.slice(at + 1)) {
      const [reach, across] = [a.r + b.r + 2, Math.abs(a.y - b.y)];
      const missing = across < reach ? Math.sqrt(reach ** 2 - across ** 2) - Math.abs(a.x - b.x) : 0;
      if (missing <= 0.5) continue;
      const sign = a.x <= b.x ? 1 : -1;
      [a.x, b.x, moved] = [a.x - (sign * missing) / 2, b.x + (sign * missing) / 2, true];
      for (const mark of [a, b]) mark.x = Math.min(Math.max(mark.x, left + mark.r), right - mark.r);
    }
  }
  return marks;
}

// Both axes are logarithmic. A mark's number is the kernel's place in the table, its size the time that it takes.
function roofline(step) {
  const rows = step.kernels.map((row, index) => ({ ...row, place: index + 1, x: row.operations / row.num_bytes, y: row.operations / (row.us * 1e-6) })).filter((row) => row.operations && row.num_bytes && row.us);
  if (!rows.length) return null;
  const [width, height, left, bottom, top] = [860, 310, 78, 40, 26];
  const ridge = step.read_limit && step.compute_limit ? step.compute_limit / step.read_limit : null;
  const span = (values, room) => [Math.floor(Math.log10(Math.min(...values)) - room), Math.ceil(Math.log10(Math.max(...values)) + room)];
  const [x0, x1] = span([...rows.map((row) => row.x), ...(ridge ? [ridge] : [])], 0.15);
  const roofs = step.read_limit ? rows.map((row) => Math.min(row.x * step.read_limit, step.compute_limit || Infinity)) : [];
  const [y0, y1] = span([...rows.map((row) => row.y), ...roofs, ...(step.compute_limit ? [step.compute_limit] : [])], 0.1);
  const px = (x) => left + ((Math.log10(x) - x0) / (x1 - x0)) * (width - left - 12);
  const py = (y) => height - bottom - ((Math.log10(y) - y0) / (y1 - y0)) * (height - bottom - top);
  const text = (x, y, anchor, content) => svg('text', { x, y, 'text-anchor': anchor, class: 'axis' }, content);
  const parts = [];
  const power = (n) => (n >= 12 ? `${10 ** (n - 12)} T` : n >= 9 ? `${10 ** (n - 9)} G` : n >= 6 ? `${10 ** (n - 6)} M` : String(10 ** n));
  for (let n = x0; n <= x1; n++) parts.push(svg('line', { x1: px(10 ** n), x2: px(10 ** n), y1: top, y2: height - bottom, class: 'grid' }), text(px(10 ** n), height - bottom + 14, 'middle', n < 0 ? (10 ** n).toFixed(-n) : String(10 ** n)));
  for (let n = y0; n <= y1; n++) parts.push(svg('line', { x1: left, x2: width - 12, y1: py(10 ** n), y2: py(10 ** n), class: 'grid' }), text(left - 6, py(10 ** n) + 4, 'end', power(n)));
  parts.push(text((left + width) / 2, height - 6, 'middle', 'operations for each byte'), text(8, 10, 'start', 'operations a second'));
  if (step.read_limit) {
    const end = ridge ? Math.min(ridge, 10 ** x1) : 10 ** x1;
    const points = [[10 ** x0, 10 ** x0 * step.read_limit], [end, end * step.read_limit], ...(ridge && ridge < 10 ** x1 ? [[10 ** x1, step.compute_limit]] : [])];
    parts.push(svg('polyline', { class: 'roof', points: points.map(([x, y]) => `${px(x)},${Math.min(py(y), height - bottom)}`).join(' ') }));
  }
  const most = Math.max(...rows.map((row) => row.us));
  const marks = moveApart(rows.map((row) => ({ row, x: px(row.x), y: py(row.y), r: 7 + 7 * Math.sqrt(row.us / most) })), left, width - 12);
  for (const { row, x, y, r } of marks) {
    const [trueX, trueY] = [px(row.x), py(row.y)];
    const lead = Math.abs(x - trueX) > 1 ? [svg('line', { x1: trueX, y1: trueY, x2: x, y2: y }), svg('circle', { cx: trueX, cy: trueY, r: 2 })] : [];
    const mark = svg('a', { href: link({ tab: 'kernels', kernel: row.kernel }), class: 'spot' }, ...lead, svg('circle', { cx: x, cy: y, r }), text(x, y + 4, 'middle', String(row.place)));
    mark.append(svg('title', {}, `${row.kernel}: ${us(row.us)} µs${row.least_us === null ? '' : `, ${(100 * shareOf(row)).toFixed(0)} % of the limit`}`));
    parts.push(mark);
  }
  const said = `${rows.length} kernels by operations for each byte and operations a second${step.read_limit ? `, under a roof of ${perSecond(step.read_limit, 'B')}${step.compute_limit ? ` and ${perSecond(step.compute_limit, 'op')}` : ''}, both measured in the same run` : ''}`;
  return h('figure', {}, svg('svg', { viewBox: `0 0 ${width} ${height}`, class: 'roofline', role: 'img', 'aria-label': said }, ...parts), h('figcaption', { class: 'quiet' }, `${said}. Numbers are places in the table below; those without products are in the table alone.`));
}

function timeTable(step) {
  const number = (key, label, value, show) => ({ key, label, value, show: show || ((row) => us(value(row))), isNumber: true, width: '92px' });
  const places = new Map(step.kernels.map((row, index) => [row, index + 1]));
  const columns = [
    { key: 'place', label: '', value: (row) => places.get(row), width: '34px', isNumber: true },
    { key: 'kernel', label: 'kernel', value: (row) => row.kernel, width: 'minmax(190px,1.4fr)', show: (row) => h('a', { class: 'mono', href: link({ tab: 'kernels', kernel: row.kernel }) }, row.kernel) },
    number('us', 'µs a step', (row) => row.us), number('count', 'launches', (row) => row.count, (row) => `×${row.count}`), number('each', 'µs each', (row) => row.us / row.count),
    number('bytes', 'moved', (row) => row.num_bytes, (row) => bytes(row.num_bytes)),
    ...(step.read_limit ? [number('share', 'of limit', shareOf, (row) => (shareOf(row) === null ? '–' : `${shareOf(row) > 1.05 ? '! ' : ''}${(100 * shareOf(row)).toFixed(0)} %`)), number('wasted', 'wasted µs', wastedUs)] : []),
    { key: 'modules', label: 'modules', value: (row) => row.modules.map(showName).join(', '), width: 'minmax(200px,2fr)' },
  ];
  return table({ columns, rows: step.kernels, label: 'Kernels by time', sort: state.sort || (step.read_limit ? '-wasted' : '-us'), onsort: (next) => link({ sort: next }) });
}

// A trace that Perfetto opens, made when it is asked for.
function traceLink(step) {
  const save = (event) => {
    let now = 0;
    const traceEvents = step.launches.map(([name, region, dur]) => {
      now += dur;
      return { name, ph: 'X', ts: now - dur, dur, pid: 0, tid: 0, args: { region } };
    });
    event.currentTarget.href = `data:application/json,${encodeURIComponent(JSON.stringify({ traceEvents }))}`;
  };
  return h('a', { class: 'button', role: 'button', href: '#', download: 'step.json', onclick: save, 'data-focus': 'trace' }, 'save as a trace for Perfetto');
}

function renderTime(main) {
  if (!data.profiles.length) {
    renderMeasured(main, { title: 'Time', tables: data.times, nothing: ['No times are recorded with this run.', '`tilewright profile ENGINE` times every launch of a decode step on the machine at hand and keeps what it found in `inspect/perf`; write the report again after it.'] });
    return;
  }
  const chosen = Math.min(Number(state.profile) || 0, data.profiles.length - 1);
  const step = data.profiles[chosen];
  main.replaceChildren(h('div', { class: 'measured' },
    h('div', { class: 'line' }, h('h1', {}, 'Time'), h('div', { class: 'toggles' },
      data.profiles.length > 1 ? h('span', { class: 'segments' }, data.profiles.map((other, at) => h('a', { class: 'button', role: 'button', 'aria-pressed': String(at === chosen), href: link({ profile: at || null }), 'data-focus': `profile-${at}` }, other.title))) : null, traceLink(step))),
    h('section', {}, h('h2', {}, step.title), h('p', { class: 'quiet' }, Object.values(step.made).join(' · ')), stepBars(step),
      step.notes.map((text) => (text.startsWith('! ') ? h('p', { class: 'note' }, text) : h('p', {}, text)))),
    h('section', {}, h('h2', {}, step.read_limit ? 'Kernels under the roof' : 'Kernels by what they do for each byte'), roofline(step), timeTable(step))));
}
