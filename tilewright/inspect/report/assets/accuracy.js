// Where errors are made: a strip of layers and values, and how they grow with depth. Each mark reads without its colour.
const MARKS = { red: ['✕', 'not rounding'], grey: ['~', 'lossy, within its budget'], ok: ['·', 'rounding'] };

function heatCell(name, cell) {
  if (!cell) return h('td', {});
  const [sign, meaning] = MARKS[cell.level];
  const strength = cell.level === 'red' || cell.ratio === null ? 0 : Math.min(4, Math.floor(2 * Math.log2(1 + cell.ratio)));
  const said = `%${at(name, cell.layer)}: ${cell.ratio === null ? 'NaN or infinite' : `${cell.ratio.toPrecision(2)} × its floor`}, ${meaning}${cell.lossy === null ? '' : ` (${cell.lossy.toExponential(1)})`}`;
  return h('td', { class: `${cell.level} heat-${strength}`, title: said }, cell.level === 'red' ? h('a', { href: link({ tab: 'passes', tensor: at(name, cell.layer) }), 'aria-label': said }, sign) : sign);
}

function heatStrip(heat) {
  const byLayer = (row) => new Map(row.cells.map((cell) => [cell.layer, cell]));
  const marked = (layer) => layer % (heat.layers > 40 ? 10 : heat.layers > 12 ? 4 : 1) === 0;
  return h('div', { class: 'heatbox', tabindex: 0, 'data-focus': 'heat', role: 'region', 'aria-label': 'Errors by layer and value' }, h('table', { class: 'heat' },
    h('thead', {}, h('tr', {}, h('th', {}, 'layer'), Array.from({ length: heat.layers }, (_, layer) => h('th', { class: 'num' }, marked(layer) ? String(layer) : '')))),
    h('tbody', {}, heat.rows.map((row) => {
      const cells = byLayer(row);
      return h('tr', {}, h('th', { scope: 'row', class: 'mono', title: row.op }, row.name.replace(/^.*?\{L\}/, '') || row.name), Array.from({ length: heat.layers }, (_, layer) => heatCell(row.name, cells.get(layer))));
    }))));
}

// Both on one logarithmic axis: what has piled up before the layer's end, and the worst that the layer itself adds.
function depthChart(heat) {
  const values = heat.depth.flat().filter((value) => value > 0);
  if (heat.depth.length < 2 || !values.length) return null;
  const [width, height, left, bottom, top] = [860, 190, 64, 34, 12];
  const [low, high] = [Math.floor(Math.log10(Math.min(...values))), Math.ceil(Math.log10(Math.max(...values)))];
  const px = (layer) => left + (layer / (heat.depth.length - 1)) * (width - left - 120);
  const py = (value) => height - bottom - ((Math.log10(value) - low) / Math.max(1, high - low)) * (height - bottom - top);
  const text = (x, y, anchor, content) => svg('text', { x, y, 'text-anchor': anchor, class: 'axis' }, content);
  const parts = [];
  for (let n = low; n <= high; n++) parts.push(svg('line', { x1: left, x2: width - 120, y1: py(10 ** n), y2: py(10 ** n), class: 'grid' }), text(left - 6, py(10 ** n) + 4, 'end', `1e${n}`));
  ['accumulated', 'isolated'].forEach((label, which) => {
    const points = heat.depth.map((pair, layer) => [px(layer), pair[which]]).filter(([, value]) => value > 0);
    parts.push(svg('polyline', { class: `curve curve-${which}`, points: points.map(([x, value]) => `${x},${py(value)}`).join(' ') }));
    if (points.length) parts.push(text(points[points.length - 1][0] + 6, py(points[points.length - 1][1]) + 4, 'start', label));
  });
  parts.push(text(left, height - 16, 'start', 'layer 0'), text(px(heat.depth.length - 1), height - 16, 'end', String(heat.depth.length - 1)));
  return h('figure', {}, svg('svg', { viewBox: `0 0 ${width} ${height}`, class: 'roofline', role: 'img', 'aria-label': 'Largest relative error of each layer: accumulated and isolated' }, ...parts),
    h('figcaption', { class: 'quiet' }, 'Largest relative error of each layer. An error that is made somewhere is a peak of the isolated curve (dashed); the accumulated one stays up behind it.'));
}

function renderAccuracy(main) {
  renderMeasured(main, { title: 'Accuracy', tables: data.numerics, nothing: ['No errors are recorded with this run.', '`tilewright check ENGINE --save` compares every pass, tensor and kernel with the import in wide floats and keeps the rows in `inspect/numerics`; write the report again after it.'] });
  if (!data.heat) return;
  const cells = [...data.heat.rows, ...data.heat.outside].flatMap((row) => row.cells);
  const legend = Object.entries(MARKS).map(([level, [sign, meaning]]) => h('span', { class: `key ${level}` }, h('b', {}, sign), ` ${meaning}: ${cells.filter((cell) => cell.level === level).length}`));
  const outside = data.heat.outside.slice(0, 8).map((row) => [' ', h('span', { class: 'nowrap' }, tensorLink(row.name), ` ${MARKS[row.cells[0].level][0]} ${row.cells[0].ratio === null ? 'NaN' : row.cells[0].ratio.toPrecision(2)}`)]);
  main.querySelector('h1').after(h('section', {}, h('h2', {}, 'Isolated error of each value, in units of its floor'), h('p', { class: 'legend-line' }, legend), heatStrip(data.heat),
    outside.length ? h('p', { class: 'quiet' }, 'Outside of layers:', outside) : null, data.heat.left_out ? h('p', { class: 'quiet' }, `${data.heat.left_out} more rows, all cleaner, are in the table below.`) : null, depthChart(data.heat)));
}
