//! An ordered map of keys that can be frozen in no time: a B+tree whose nodes are shared and copied on write.
//!
//! Cloning the map copies one `Arc`. A later change copies the nodes on the way from the root to its leaf if, and only
//! if, they are still shared: at most [`MAX`] small items a level (keys and values themselves are shared), whatever the
//! size of the map. A flat list of segments is simpler, but its one top level is tens of thousands of `Arc`s at ten
//! million keys, to be copied at each freeze or by the first write after it.
//!
//! # Invariants
//! 1. All leaves are at the same depth.
//! 2. Keys ascend strictly, in each leaf and from leaf to leaf.
//! 3. All keys of child `i` are at least its `low` and less than the `low` of child `i + 1`. The `low` of a node's first
//!    child is not looked at: what bounds it is the node's own.
//! 4. No node but an empty root is empty; none has more than [`MAX`] items; an inner root has two or more.
//! 5. `len` counts the entries.
//!
//! Not here: what a value is. Keys are copied in, so that none holds on to the buffer it came in.

#[cfg(test)]
mod tests;

use std::{fmt, ops::Bound, slice, sync::Arc};

/// The most items of a node. Larger leaves cost more to copy after a freeze, smaller ones more memory and depth. Few
/// in this module's own tests, so that these meet deep trees.
const MAX: usize = if cfg!(test) { 8 } else { 128 };

type Key = Arc<[u8]>;

/// The map. Clone is the freeze.
pub(super) struct OrderedMap<V> {
    root: Arc<Node<V>>,
    len: usize,
}

#[derive(Clone)]
enum Node<V> {
    Leaf(Vec<(Key, V)>),
    Inner(Vec<Child<V>>),
}

struct Child<V> {
    low: Key,
    node: Arc<Node<V>>,
}

impl<V> Clone for Child<V> {
    fn clone(&self) -> Self {
        Self { low: Arc::clone(&self.low), node: Arc::clone(&self.node) }
    }
}

impl<V> Clone for OrderedMap<V> {
    fn clone(&self) -> Self {
        Self { root: Arc::clone(&self.root), len: self.len }
    }
}

impl<V> Default for OrderedMap<V> {
    fn default() -> Self {
        Self { root: Arc::new(Node::Leaf(Vec::new())), len: 0 }
    }
}

impl<V> fmt::Debug for OrderedMap<V> {
    /// Its size only: ten million keys help nobody in a log line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OrderedMap").field("len", &self.len).finish_non_exhaustive()
    }
}

impl<V: Clone> OrderedMap<V> {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn get(&self, key: &[u8]) -> Option<&V> {
        let mut node = &*self.root;
        loop {
            match node {
                Node::Leaf(entries) => return find(entries, key).ok().map(|at| &entries[at].1),
                Node::Inner(children) => node = &children[child_of(children, key)].node,
            }
        }
    }

    /// Puts a value at a key and returns the one that was there. The key is copied if it is new.
    pub(super) fn insert(&mut self, key: &[u8], value: V) -> Option<V> {
        let (previous, split) = insert_into(Arc::make_mut(&mut self.root), key, value);
        if let Some(right) = split {
            let node = std::mem::replace(&mut self.root, Arc::new(Node::Leaf(Vec::new())));
            let left = Child { low: Key::from(&[][..]), node };
            self.root = Arc::new(Node::Inner(vec![left, right]));
        }
        self.len += usize::from(previous.is_none());
        previous
    }

    /// Removes a key and returns its value.
    pub(super) fn remove(&mut self, key: &[u8]) -> Option<V> {
        // A miss must not copy shared nodes.
        self.get(key)?;
        let removed = remove_from(Arc::make_mut(&mut self.root), key)?;
        self.len -= 1;
        while let Node::Inner(children) = &*self.root {
            self.root = match children.as_slice() {
                [] => Arc::new(Node::Leaf(Vec::new())),
                [only] => Arc::clone(&only.node),
                _ => break,
            };
        }
        Some(removed)
    }

    /// All entries, in key order.
    pub(super) fn iter(&self) -> Iter<'_, V> {
        self.iter_from(Bound::Unbounded)
    }

    /// The entries from a key on, in key order.
    pub(super) fn iter_from(&self, start: Bound<&[u8]>) -> Iter<'_, V> {
        let key = match start {
            Bound::Included(key) | Bound::Excluded(key) => key,
            Bound::Unbounded => &[],
        };
        let mut path = Vec::new();
        let mut node = &*self.root;
        loop {
            match node {
                Node::Inner(children) => {
                    let at = child_of(children, key);
                    path.push(children[at + 1..].iter());
                    node = &children[at].node;
                }
                Node::Leaf(entries) => {
                    let at = match (find(entries, key), start) {
                        (Ok(at), Bound::Excluded(_)) => at + 1,
                        (Ok(at) | Err(at), _) => at,
                    };
                    return Iter { leaf: entries[at..].iter(), path };
                }
            }
        }
    }
}

/// Entries in key order.
pub(super) struct Iter<'a, V> {
    leaf: slice::Iter<'a, (Key, V)>,
    /// From the root down: the children still to come at each level.
    path: Vec<slice::Iter<'a, Child<V>>>,
}

impl<'a, V> Iterator for Iter<'a, V> {
    type Item = (&'a [u8], &'a V);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some((key, value)) = self.leaf.next() {
                return Some((key, value));
            }
            let Some(child) = self.path.last_mut()?.next() else {
                self.path.pop();
                continue;
            };
            let mut node = &*child.node;
            while let Node::Inner(children) = node {
                let mut rest = children.iter();
                node = &*rest.next()?.node;
                self.path.push(rest);
            }
            if let Node::Leaf(entries) = node {
                self.leaf = entries.iter();
            }
        }
    }
}

fn find<V>(entries: &[(Key, V)], key: &[u8]) -> Result<usize, usize> {
    entries.binary_search_by(|(here, _)| (**here).cmp(key))
}

/// Which child a key belongs to: the last one whose `low` is not above it.
fn child_of<V>(children: &[Child<V>], key: &[u8]) -> usize {
    children.partition_point(|child| *child.low <= *key).saturating_sub(1)
}

/// Inserts below `node`; a node that grew too large gives its right part back.
fn insert_into<V: Clone>(node: &mut Node<V>, key: &[u8], value: V) -> (Option<V>, Option<Child<V>>) {
    match node {
        Node::Leaf(entries) => match find(entries, key) {
            Ok(at) => (Some(std::mem::replace(&mut entries[at].1, value)), None),
            Err(at) => {
                entries.insert(at, (Key::from(key), value));
                let split = split(entries, at)
                    .map(|right| Child { low: Arc::clone(&right[0].0), node: Arc::new(Node::Leaf(right)) });
                (None, split)
            }
        },
        Node::Inner(children) => {
            let at = child_of(children, key);
            let (previous, split_child) = insert_into(Arc::make_mut(&mut children[at].node), key, value);
            let split = split_child.and_then(|right| {
                children.insert(at + 1, right);
                split(children, at + 1)
                    .map(|right| Child { low: Arc::clone(&right[0].low), node: Arc::new(Node::Inner(right)) })
            });
            (previous, split)
        }
    }
}

/// The right part of a list that grew past the maximum by an insertion at `inserted`. Half of it, but only the new item
/// if that came last: keys that arrive in order (a load, a snapshot) leave full nodes behind.
fn split<T>(items: &mut Vec<T>, inserted: usize) -> Option<Vec<T>> {
    if items.len() <= MAX {
        return None;
    }
    let at = if inserted == MAX { MAX } else { items.len() / 2 };
    Some(items.split_off(at))
}

/// Removes below `node`; it may be left empty, which its parent mends.
fn remove_from<V: Clone>(node: &mut Node<V>, key: &[u8]) -> Option<V> {
    match node {
        Node::Leaf(entries) => find(entries, key).ok().map(|at| entries.remove(at).1),
        Node::Inner(children) => {
            let at = child_of(children, key);
            let removed = remove_from(Arc::make_mut(&mut children[at].node), key)?;
            if at + 1 < children.len() && fit(&children[at], &children[at + 1]) {
                merge(children, at);
            } else if at > 0 && fit(&children[at - 1], &children[at]) {
                merge(children, at - 1);
            } else if children[at].node.items() == 0 {
                children.remove(at);
            }
            Some(removed)
        }
    }
}

/// Whether two neighbours leave room to grow when merged.
fn fit<V>(left: &Child<V>, right: &Child<V>) -> bool {
    left.node.items() + right.node.items() <= MAX / 2
}

/// Moves everything of child `at + 1` into child `at`.
fn merge<V: Clone>(children: &mut Vec<Child<V>>, at: usize) {
    let Child { low, node } = children.remove(at + 1);
    match (Arc::make_mut(&mut children[at].node), Arc::unwrap_or_clone(node)) {
        (Node::Leaf(left), Node::Leaf(mut right)) => left.append(&mut right),
        (Node::Inner(left), Node::Inner(mut right)) => {
            // What was a first child becomes one among others: now its bound counts.
            if let Some(first) = right.first_mut() {
                first.low = low;
            }
            left.append(&mut right);
        }
        (Node::Leaf(_), Node::Inner(_)) | (Node::Inner(_), Node::Leaf(_)) => {
            panic!("neighbours of one node are at different depths: the map's first invariant is broken")
        }
    }
}

impl<V> Node<V> {
    fn items(&self) -> usize {
        match self {
            Self::Leaf(entries) => entries.len(),
            Self::Inner(children) => children.len(),
        }
    }
}

impl<V: Clone> OrderedMap<V> {
    /// Panics with a sentence if an invariant of the type does not hold.
    pub(super) fn check_invariants(&self) {
        let items = self.root.items();
        if let Node::Inner(_) = &*self.root {
            assert!(items >= 2, "an inner root of the map has {items} children");
        }
        let (entries, _) = check_node(&self.root, &[], None, true);
        assert_eq!(entries, self.len, "the map counts {} entries and has {entries}", self.len);
    }
}

/// Checks everything below a node and returns its entries and its depth.
fn check_node<V>(node: &Node<V>, low: &[u8], high: Option<&[u8]>, root: bool) -> (usize, usize) {
    let within = |key: &[u8]| key >= low && high.is_none_or(|high| key < high);
    assert!(node.items() <= MAX, "a node of the map has {} items", node.items());
    assert!(root || node.items() > 0, "a node of the map is empty");
    match node {
        Node::Leaf(entries) => {
            assert!(entries.is_sorted_by(|(a, _), (b, _)| a < b), "keys of a leaf do not ascend");
            assert!(entries.iter().all(|(key, _)| within(key)), "a key lies outside of its leaf");
            (entries.len(), 0)
        }
        Node::Inner(children) => {
            let mut total = 0;
            let mut depths = Vec::new();
            for (at, child) in children.iter().enumerate() {
                let low = if at == 0 { low } else { &child.low };
                let next = children.get(at + 1).map(|next| &*next.low).or(high);
                assert!(within(low), "a child's bound lies outside of its parent");
                assert!(next.is_none_or(|next| low < next), "the bounds of children do not ascend");
                let (entries, depth) = check_node(&child.node, low, next, false);
                total += entries;
                depths.push(depth);
            }
            assert!(depths.iter().all(|depth| *depth == depths[0]), "leaves of the map differ in depth");
            (total, depths[0] + 1)
        }
    }
}
