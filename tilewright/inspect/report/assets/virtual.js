// A list of rows of equal height, of which only those in sight are elements.
function virtualList({ count: total, height, draw, label, role, className, onkeydown }) {
  const inner = h('div', { class: 'virtual', style: `height:${total * height}px`, role: 'presentation' });
  const box = h('div', { class: `scroll ${className || ''}`, role, 'aria-label': label, tabindex: 0, onkeydown }, inner);
  let from = -1;
  let to = -1;
  const paint = (force) => {
    const first = Math.max(0, Math.floor(box.scrollTop / height) - 8);
    const last = Math.min(total, Math.ceil((box.scrollTop + (box.clientHeight || 600)) / height) + 8);
    if (!force && first === from && last === to) return;
    [from, to] = [first, last];
    const rows = [];
    for (let index = first; index < last; index++) {
      const row = draw(index);
      row.style.transform = `translateY(${index * height}px)`;
      rows.push(row);
    }
    inner.replaceChildren(...rows);
  };
  box.addEventListener('scroll', () => paint(false), { passive: true });
  new ResizeObserver(() => paint(false)).observe(box);
  queueMicrotask(() => box.isConnected && paint(false)); // the list is in the page by then: no frame without rows
  box.repaint = () => paint(true);
  box.reveal = (index) => {
    const top = index * height;
    if (top < box.scrollTop + height) box.scrollTop = Math.max(0, top - height * 3);
    else if (top + height * 2 > box.scrollTop + box.clientHeight) box.scrollTop = top - box.clientHeight + height * 4;
    paint(true);
  };
  return box;
}
