/** The page's elements by id, checked: a page and modules of different versions must say so at once. */

/**
 * @template {Element} T
 * @param {string} id
 * @param {new (...args: any[]) => T} kind
 * @returns {T}
 */
export function element(id, kind) {
  const found = document.getElementById(id);
  if (!(found instanceof kind)) throw new Error(`index.html lacks #${id}`);
  return found;
}

/** @param {string} id */
export const html = (id) => element(id, HTMLElement);
