// The graph after, before, or on both sides of a pass: one op a row, with its lanes and what the pass did to it.
const SIGNS = { '=': ['', ''], '+': ['+', 'added'], '-': ['−', 'removed'], '~': ['~', 'made in another way'], '>': ['›', 'reads another tensor'] };

// The rows of a step as items {row, sign, partly, gone}.
function itemsOf(step, show) {
  const after = graphOf(step.snapshot).rows.map((row) => ({ row, sign: step.isChange ? step.snapshot.signs[row.index] : '=', partly: step.isChange && step.snapshot.partly[row.index] }));
  if (!step.isChange || show === 'after') return after;
  const before = graphOf(step.previous).rows.map((row) => ({ row, sign: step.snapshot.before[row.index], gone: true }));
  return show === 'before' ? before : step.snapshot.merged.map((index) => (index < 0 ? before[-1 - index] : after[index]));
}

function isShown({ row, sign }, options) {
  if (row.kind === 'graph') return false;
  if (row.kind === 'param') return options.weights || sign === '+' || sign === '-';
  if (options.weights || row.block === null || row.kind !== 'other') return !(options.hideViews && row.isView && (sign === '=' || sign === '>'));
  return true;
}

// Blocks of weights alone are left out with their weights.
function dropEmptyBlocks(items) {
  const out = [];
  for (const item of items) {
    const top = out[out.length - 1];
    if (item.row.kind === 'close' && top && top.row.kind === 'repeat') out.pop();
    else out.push(item);
  }
  return out;
}

function layItems(items, all) {
  const kept = items.filter((item) => !(item.gone && item.mixed));
  const chosen = new Set(kept.map((item) => item.row));
  const lays = layLanes(kept.map((item) => item.row), all.filter((item) => !item.gone === !kept[0]?.gone && !chosen.has(item.row)).map((item) => item.row));
  let last = { above: [], joins: [], leaves: [], dot: -1, below: [] };
  let index = 0;
  return items.map((item) => {
    if (item.gone && item.mixed) return { ...last, above: last.below, joins: [], leaves: [], dot: -1, hasDot: false };
    return (last = lays[index++]);
  });
}

function ledger(step, options, onselect) {
  const all = itemsOf(step, options.show);
  const isMixed = step.isChange && options.show === 'both';
  all.forEach((item) => (item.mixed = isMixed));
  const items = dropEmptyBlocks(all.filter((item) => isShown(item, options)));
  const lays = layItems(items, all);
  const width = lanesUsed(lays) * LANE + 8;
  let selected = null;
  const isSelected = (item) => selected !== null && item.row.names.length > 0 && stands(item.row, selected);
  const draw = (index) => {
    const item = items[index];
    const { row } = item;
    const [glyph, meaning] = SIGNS[item.sign];
    const chosen = isSelected(item);
    const kind = { '+': 'added', '-': 'removed', '~': 'changed', '>': 'rereads' }[item.sign] || '';
    return h('div', {
      class: `row ${row.kind} ${kind} ${row.block || row.kind === 'close' ? 'inside' : ''} ${row.isConst ? 'const' : ''} ${chosen ? 'selected' : ''}`,
      role: 'option', id: `row-${index}`, 'aria-selected': String(chosen), title: row.kind === 'op' ? row.text : null,
      onclick: () => row.names.length && onselect(tensorOf(row, null)),
    },
    h('span', { class: 'sign', title: meaning, 'aria-label': meaning || null }, glyph, item.partly ? h('small', {}, item.partly) : null),
    drawLanes(lays[index], width),
    ...cells(row));
  };
  const step_ = (by) => {
    let at_ = items.findIndex(isSelected);
    do at_ += by; while (items[at_] && !items[at_].row.names.length);
    if (items[at_]) onselect(tensorOf(items[at_].row, null), true);
  };
  const box = virtualList({
    count: items.length, height: ROW, draw, role: 'listbox', label: 'Ledger of ops', className: 'ledger',
    onkeydown: (event) => {
      if (event.altKey || event.ctrlKey || event.metaKey) return;
      if (event.key === 'ArrowDown' || event.key === 'ArrowUp') {
        event.preventDefault();
        step_(event.key === 'ArrowDown' ? 1 : -1);
      }
    },
  });
  box.dataset.focus = 'ledger';
  box.select = (name) => {
    selected = name;
    const index = items.findIndex(isSelected);
    if (index >= 0) {
      box.setAttribute('aria-activedescendant', `row-${index}`);
      box.reveal(index);
    } else box.repaint();
  };
  box.numRows = items.length;
  box.revealFirstChange = () => {
    const first = items.findIndex((item) => item.sign !== '=');
    if (first >= 0) box.reveal(first);
  };
  return box;
}

// Whether a row stands for a tensor, whatever its layer.
function stands(row, name) {
  if (!row.block) return row.names.includes(name);
  const { key, layer } = splitLayer(name);
  return row.names.some((template) => {
    if (template.replace(PLACE, '{L}') !== key) return false;
    const turn = layer - Number((PLACE.exec(template) || [])[1] || 0);
    return turn >= row.block.first && turn <= row.block.last && (turn - row.block.first) % row.block.step === 0;
  });
}

function cells(row) {
  if (row.kind === 'repeat') {
    const span = `${row.stem} ${row.first}..${row.last}${row.step > 1 ? ` step ${row.step}` : ''}`;
    const carry = row.carry.map(([name, start]) => `${name} starts as ${start}`).join(', ');
    return [h('span', { class: 'bar' }, h('b', {}, `repeat ×${row.turns}`), h('span', { class: 'quiet' }, `  ${span}${carry ? `   ${carry}` : ''}`))];
  }
  if (row.kind === 'close') return [h('span', { class: 'bar quiet' }, `end of repeat ×${row.opens ? row.opens.turns : ''}`)];
  if (row.kind === 'yield') return [h('span', { class: 'name quiet' }, 'next turn'), h('span', { class: 'what quiet' }, row.text.slice(6))];
  if (row.kind === 'return') return [h('span', { class: 'name quiet' }, 'return'), h('span', { class: 'what' }, row.reads.join(', '))];
  if (row.kind === 'other') return [h('span', { class: 'what' }, row.text)];
  const what = row.kind === 'param' ? [h('span', { class: 'op' }, 'weight')]
    : [h('span', { class: 'op' }, row.op), `(${row.operands.join(', ')})`, row.attrs ? h('span', { class: 'quiet' }, ` ${row.attrs}`) : null];
  return [h('span', { class: 'name' }, row.shown.join(', ')), h('span', { class: 'what' }, ...what), h('span', { class: 'type' }, row.type)];
}
