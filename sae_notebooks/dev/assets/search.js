// Search in the index of the site, which is loaded when somebody begins to type.
// Keys: / or Ctrl-K, arrows, Enter, Escape.
const box = document.getElementById('find'), list = document.getElementById('found');
let rows = null;
window.siteIndex = all => { // called by search-index.js
  const low = (...texts) => texts.map(s => s.toLowerCase());
  rows = all.map(([page, head, href, text]) => ({page, head, href, text, low: low(head, page, text)}));
  show();
};
function load() {
  if (rows || document.getElementById('index')) return;
  const s = document.createElement('script');
  s.id = 'index'; s.src = box.dataset.root + 'site_libs/search-index.js';
  document.head.append(s);
}
function score(row, words) { // a heading counts most, then the page, then the text; every word has to be somewhere
  let sum = 0;
  for (const w of words) {
    const at = row.low.map(s => s.indexOf(w));
    if (at.every(i => i < 0)) return 0;
    sum += (at[0] >= 0) * 8 + (at[0] === 0) * 4 + (at[1] >= 0) * 5 + (at[2] >= 0) + (!row.head) * .5;
  }
  return sum;
}
function around(text, word) { // the words beside the first hit
  const at = Math.max(0, text.toLowerCase().indexOf(word)), from = Math.max(0, at - 40);
  return (from ? '…' : '') + text.slice(from, from + 120);
}
function show() {
  const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
  list.hidden = !words.length || !rows;
  list.replaceChildren();
  if (list.hidden) return;
  const hits = rows.map(r => [score(r, words), r]).filter(h => h[0]).sort((a, b) => b[0] - a[0]).slice(0, 12);
  for (const [, r] of hits) {
    const [li, a, where, said] = ['li', 'a', 'b', 'span'].map(t => document.createElement(t));
    a.href = box.dataset.root + r.href;
    where.textContent = r.head ? `${r.page} › ${r.head}` : r.page;
    said.textContent = around(r.text, words[0]);
    a.append(where, said); li.append(a); list.append(li);
  }
  if (!hits.length) list.append(Object.assign(document.createElement('li'), {textContent: 'Nothing found'}));
}
function close() { box.value = ''; show(); box.blur(); }
box.addEventListener('focus', load);
box.addEventListener('input', () => { load(); show(); });
document.addEventListener('keydown', e => {
  const links = [...list.querySelectorAll('a')], here = document.activeElement, at = links.indexOf(here);
  const typing = here === box, elsewhere = /^(INPUT|TEXTAREA|SELECT)$/.test(here.tagName);
  if ((e.key === '/' && !elsewhere) || (e.key === 'k' && (e.ctrlKey || e.metaKey))) {
    e.preventDefault();
    box.focus();
    box.select();
  }
  else if (!typing && at < 0) return;
  else if (e.key === 'Escape') close();
  else if (e.key === 'Enter' && typing && links.length) links[0].click();
  else if (/^Arrow(Up|Down)$/.test(e.key)) {
    e.preventDefault();
    const to = at + (e.key === 'ArrowDown' ? 1 : -1);
    (to < 0 ? box : links[Math.min(to, links.length - 1)] || box).focus();
  }
});
document.addEventListener('click', e => { if (!e.target.closest('.find')) list.hidden = true; });
