// Tables whose columns sort, of which only the rows in sight are elements.
// columns: {key, label, value(row), show(row), isNumber, width}
function table({ columns, rows, label, sort, onsort, rowClass, fill }) {
  const chosen = columns.find((column) => column.key === (sort || '').replace(/^-/, ''));
  const isDown = (sort || '').startsWith('-');
  const order = rows.map((row, index) => [row, index]);
  if (chosen) {
    const value = ([row]) => chosen.value(row) ?? (chosen.isNumber ? -Infinity : '');
    order.sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      return (x < y ? -1 : x > y ? 1 : 0) * (isDown ? -1 : 1) || a[1] - b[1];
    });
  }
  const grid = `grid-template-columns:${columns.map((column) => column.width || 'minmax(70px,1fr)').join(' ')}`;
  const head = h('div', { class: 'tr th', role: 'row', style: grid }, columns.map((column) => {
    const isChosen = column === chosen;
    const next = isChosen ? (isDown ? column.key : `-${column.key}`) : column.isNumber ? `-${column.key}` : column.key;
    return h('div', { role: 'columnheader', class: column.isNumber ? 'num' : null, 'aria-sort': isChosen ? (isDown ? 'descending' : 'ascending') : 'none' },
      onsort ? h('a', { role: 'button', href: onsort(next), 'data-focus': `sort-${column.key}`, title: column.title }, column.label, h('span', { class: 'arrow' }, isChosen ? (isDown ? ' ↓' : ' ↑') : '')) : column.label);
  }));
  const body = virtualList({
    count: order.length, height: 28, role: 'rowgroup', label,
    draw: (index) => {
      const [row] = order[index];
      return h('div', { class: `tr ${rowClass ? rowClass(row) : ''}`, role: 'row', style: grid }, columns.map((column) => h('div', { role: 'cell', class: column.isNumber ? 'num' : null }, (column.show || column.value)(row) ?? '–')));
    },
  });
  if (!fill) body.style.height = `${Math.min(order.length, 14) * 28 + 2}px`;
  return Object.assign(h('div', { class: `table ${fill ? 'fill' : ''}`, role: 'table', 'aria-label': label, 'aria-rowcount': order.length }, head, body), { body, order: order.map(([row]) => row) });
}
