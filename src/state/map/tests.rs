//! Against `BTreeMap`, with freezes that must stay as they were.

use std::{collections::BTreeMap, ops::Bound};

use proptest::prelude::*;

use super::{MAX, OrderedMap};

type Model = BTreeMap<Vec<u8>, u64>;

fn assert_same(map: &OrderedMap<u64>, model: &Model) {
    map.check_invariants();
    assert_eq!(map.len(), model.len());
    assert!(map.iter().map(|(k, v)| (k, *v)).eq(model.iter().map(|(k, v)| (k.as_slice(), *v))));
}

#[derive(Debug, Clone)]
enum Step {
    Insert(u16, u64),
    /// Removes a run of so many keys from one on: leaves and whole branches become empty.
    Remove(u16, u16),
    Freeze,
    Seek(u16, bool),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        20 => (0..3000_u16, any::<u64>()).prop_map(|(key, value)| Step::Insert(key, value)),
        6 => (0..3000_u16, 1..3_u16).prop_map(|(key, run)| Step::Remove(key, run)),
        1 => (0..3000_u16, 1..2500_u16).prop_map(|(key, run)| Step::Remove(key, run)),
        1 => Just(Step::Freeze),
        2 => (0..3000_u16, any::<bool>()).prop_map(|(key, inclusive)| Step::Seek(key, inclusive)),
    ];
    prop::collection::vec(step, 1..600)
}

/// Keys of several lengths, so that prefixes of one another are met.
fn key(number: u16) -> Vec<u8> {
    format!("{number:x}").into_bytes()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn behaves_like_a_btree_map_and_freezes_stay(filled in 0..3000_u16, steps in steps()) {
        let mut map = OrderedMap::default();
        let mut model = Model::new();
        for number in 0..filled {
            prop_assert_eq!(map.insert(&key(number), 0), model.insert(key(number), 0));
        }
        let mut frozen = vec![(map.clone(), model.clone())];
        for step in steps {
            match step {
                Step::Insert(number, value) => {
                    prop_assert_eq!(map.insert(&key(number), value), model.insert(key(number), value));
                }
                Step::Remove(from, run) => for number in from..from.saturating_add(run) {
                    prop_assert_eq!(map.remove(&key(number)), model.remove(&key(number)));
                },
                Step::Freeze => frozen.push((map.clone(), model.clone())),
                Step::Seek(number, inclusive) => {
                    let key = key(number);
                    prop_assert_eq!(map.get(&key), model.get(&key));
                    let bound = if inclusive { Bound::Included(&key[..]) } else { Bound::Excluded(&key[..]) };
                    let expected = model.range::<[u8], _>((bound, Bound::Unbounded));
                    prop_assert!(map.iter_from(bound).eq(expected.map(|(k, v)| (k.as_slice(), v))));
                }
            }
        }
        frozen.push((map, model));
        for (map, model) in frozen {
            assert_same(&map, &model);
        }
    }
}

#[test]
fn keys_in_order_leave_full_leaves() {
    let mut map = OrderedMap::default();
    for number in 0..MAX as u32 * 5 {
        map.insert(&number.to_be_bytes(), ());
    }
    map.check_invariants();
    let super::Node::Inner(children) = &*map.root else { panic!("five leaves need a parent") };
    assert_eq!(children.len(), 5);
}

#[test]
fn removing_everything_in_any_direction_leaves_an_empty_map() {
    let mut full = OrderedMap::default();
    let keys: Vec<_> = (0..20_000_u32).map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()).collect();
    for key in &keys {
        full.insert(key, ());
    }
    let mut ascending = keys.clone();
    ascending.sort_unstable();
    let descending = ascending.iter().rev().copied().collect();
    for order in [keys, ascending, descending] {
        let mut map = full.clone();
        for (done, key) in order.iter().enumerate() {
            assert!(map.remove(key).is_some());
            if done % 1000 == 0 {
                map.check_invariants();
            }
        }
        map.check_invariants();
        assert_eq!(map.len(), 0);
        assert!(map.iter().next().is_none());
    }
    full.check_invariants();
    assert_eq!(full.len(), 20_000);
}
