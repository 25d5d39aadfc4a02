// A tensor between what it is made of and what is made of it, as a small drawing.
function neighbours(name, sigil, op, reads, readers) {
  const FEW_NEAR = 5;
  const [width, line, indent] = [312, 22, 22];
  const own = splitLayer(name);
  const lead = own.layer === null ? null : `${own.key.slice(0, own.key.indexOf('{L}'))}${own.layer}.`;
  const short = (full) => {
    const text = lead && full.slice(1).startsWith(lead) ? full[0] + full.slice(lead.length) : full;
    return text.length > 40 ? `${text[0]}…${text.slice(-38)}` : text;
  };
  const parts = [];
  const box = (y, full, isOwn) => {
    const shape = svg('rect', { x: isOwn ? 0.5 : indent, y: y + 2.5, width: isOwn ? width - 1 : width - indent - 1, height: line - 5, rx: 4, class: full[0] === '@' ? 'near weight' : isOwn ? 'near own' : 'near' });
    const label = svg('text', { x: (isOwn ? 0 : indent) + 8, y: y + 15, class: 'nearname' }, isOwn ? `${short(full)} = ${op}` : short(full));
    parts.push(isOwn ? svg('g', {}, shape, label) : svg('a', { href: link({ tab: 'passes', tensor: bare(full) }) }, shape, label));
  };
  const edge = (from, to, isArrow) => {
    parts.push(svg('path', { class: 'nearline', d: isArrow ? `M 8 ${from} V ${to} H ${indent}` : `M ${indent} ${from} H 8 V ${to}` }));
    parts.push(svg('path', { class: 'nearhead', d: isArrow ? `M ${indent} ${to} l -6 -3 v 6 z` : `M 8 ${to} l -3 -6 h 6 z` }));
  };
  const few = (names) => [names.slice(0, FEW_NEAR), names.length - FEW_NEAR];
  const [above, moreAbove] = few(reads);
  const [below, moreBelow] = few(readers);
  let y = 0;
  const middle = above.length * line + (above.length ? 10 : 0);
  for (const read of above) {
    edge(y + line / 2, middle + 2);
    box(y, read);
    y += line;
  }
  box(middle, sigil + name, true);
  y = middle + line + 8;
  for (const reader of below) {
    edge(middle + line - 2, y + line / 2, true);
    box(y, reader);
    y += line;
  }
  const more = [moreAbove > 0 ? `${moreAbove} more above` : '', moreBelow > 0 ? `${moreBelow} more below` : ''].filter(Boolean).join(', ');
  return h('figure', { class: 'neighbours' }, svg('svg', { width, height: y + 2, viewBox: `0 0 ${width} ${y + 2}`, role: 'img', 'aria-label': `${name} reads ${reads.length} and is read by ${readers.length}` }, ...parts), more ? h('figcaption', { class: 'quiet' }, more) : null);
}
