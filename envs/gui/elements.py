"""The interactive elements of a live page, read from its DOM: role, accessible name, box, and whether a click lands.

An element counts if a click in the middle of its box would reach it: it is displayed, enabled, at least partly in the
viewport, and ``elementFromPoint`` there is the element, something inside it, or the label that stands for it. What lies
under a dialog, a fixed bar or an open menu is therefore no target.

Deviation: names follow the order of the accessible-name computation (``aria-labelledby``, ``aria-label``, labels,
``alt`` and values, content, ``title``, ``placeholder``), not all of its rules for nested and hidden content.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

ELEMENTS_JS = r"""() => {
  const INTERACTIVE = 'a[href], button, input:not([type=hidden]), select, textarea, summary, [onclick], ' +
    ['button', 'link', 'tab', 'menuitem', 'checkbox', 'radio', 'switch', 'option', 'combobox', 'textbox', 'slider']
      .map(role => `[role=${role}]`).join(', ');
  const clean = text => (text || '').replace(/[\s\u00a0]+/g, ' ').replace(/[\ue000-\uf8ff]/g, '').trim();
  const content = e => clean(e.innerText) || clean([...e.querySelectorAll('img[alt], svg[aria-label], svg title')]
    .map(i => i.getAttribute('alt') || i.getAttribute('aria-label') || i.textContent).join(' '));
  const INPUTS = {checkbox: 'checkbox', radio: 'radio button', submit: 'button', button: 'button', reset: 'button',
    image: 'button', file: 'button', range: 'slider', search: 'search box', number: 'number field', date: 'date field',
    color: 'colour field', password: 'password field'};
  const ROLES = {radio: 'radio button', textbox: 'text field', combobox: 'drop-down', menuitem: 'menu item'};
  const role = e => {
    const given = e.getAttribute('role'), tag = e.tagName.toLowerCase();
    if (given && !['presentation', 'none', 'group', 'navigation', 'document'].includes(given))
      return ROLES[given] || given;
    if (tag === 'input') return INPUTS[e.type] || 'text field';
    return {a: 'link', button: 'button', select: 'drop-down', textarea: 'text field', summary: 'button'}[tag]
      || 'element';
  };
  const name = e => {
    const by = (e.getAttribute('aria-labelledby') || '').split(/\s+/).map(id => document.getElementById(id));
    const labels = [...(e.labels || [])].map(l => clean(l.innerText)).join(' ');
    const pressed = e.tagName === 'INPUT' && ['submit', 'button', 'reset'].includes(e.type);
    const own = e.matches('input, select, textarea') ? '' : content(e);
    return clean(by.filter(Boolean).map(content).join(' ')) || clean(e.getAttribute('aria-label')) || clean(labels)
      || clean(e.getAttribute('alt')) || (pressed ? clean(e.value) || clean(e.type) : '') || own
      || clean(e.getAttribute('title')) || clean(e.getAttribute('placeholder'));
  };
  const width = document.documentElement.clientWidth, height = document.documentElement.clientHeight;
  const area = r => Math.max(0, r.width) * Math.max(0, r.height);
  // A link that wraps has a rectangle a line, and the box around all of them is mostly not the link.
  const box = e => {
    const r = [...e.getClientRects()].reduce((a, b) => area(b) > area(a) ? b : a, {width: 0, height: 0});
    return area(r) ? [Math.max(0, r.left), Math.max(0, r.top), Math.min(width, r.right), Math.min(height, r.bottom)]
      : null;
  };
  const reached = (e, x, y) => {
    const hit = document.elementFromPoint(x, y);
    return !!hit && (e === hit || e.contains(hit) || hit.closest('label')?.control === e);
  };
  const pointer = e => getComputedStyle(e).cursor === 'pointer';
  const found = new Set(document.querySelectorAll(INTERACTIVE));
  // What scripts made clickable shows it by its cursor, which children inherit: the outermost one counts.
  for (const e of document.querySelectorAll('body *'))
    if (pointer(e) && !e.closest(INTERACTIVE) && !pointer(e.parentElement) && !e.querySelector(INTERACTIVE)
        && !(e.tagName === 'LABEL' && e.control))
      found.add(e);
  const out = [];
  window.__aligngym_elements = [];
  for (const e of found) {
    if (e.disabled || getComputedStyle(e).visibility !== 'visible' || e.getAttribute('aria-disabled') === 'true')
      continue;
    const b = box(e);
    if (!b || b[2] - b[0] < 2 || b[3] - b[1] < 2 || !reached(e, (b[0] + b[2]) / 2, (b[1] + b[3]) / 2)) continue;
    out.push({role: role(e), name: name(e), box: b, kind: (e.getAttribute('type') || e.tagName).toLowerCase()});
    window.__aligngym_elements.push(e);
  }
  return out;
}"""
"""A JavaScript function without arguments that returns the elements in document order, as :func:`read_elements` takes
them; it leaves the DOM nodes themselves in ``window.__aligngym_elements``, in the same order."""


@dataclass(frozen=True)
class Element:
    """One interactive element as it is seen.

    Attributes:
        role: in plain words: ``button``, ``link``, ``text field``, ``checkbox``, ``drop-down``, ``tab``, ...;
            ``element`` where only its behaviour says that it can be clicked.
        name: its accessible name; empty where it has none.
        box: ``(x0, y0, x1, y1)`` in CSS pixels of the viewport, clipped to it.
    """

    role: str
    name: str
    box: tuple[float, float, float, float]


def read_elements(found: list[dict[str, Any]]) -> list[Element]:
    """What :data:`ELEMENTS_JS` returned, in the same order."""
    return [Element(str(e["role"]), str(e["name"]), tuple(map(float, e["box"]))) for e in found]  # type: ignore[arg-type]
