use std::collections::{BTreeMap, BTreeSet};

/// A map that forgets what was used least lately when it is full.
///
/// Ordered, so that a run with one seed is the same every time.
#[derive(Clone, Debug)]
pub struct Lru<K, V> {
    entries: BTreeMap<K, (u64, V)>,
    by_age: BTreeMap<u64, K>,
    clock: u64,
    capacity: usize,
    evictions: u64,
    evicted: Option<BTreeSet<K>>,
}

impl<K: Ord + Copy, V> Lru<K, V> {
    /// A map with room for `capacity` entries.
    #[must_use]
    pub const fn new(capacity: usize) -> Self {
        Self {
            entries: BTreeMap::new(),
            by_age: BTreeMap::new(),
            clock: 0,
            capacity,
            evictions: 0,
            evicted: None,
        }
    }

    /// The same, and it remembers which keys it had to forget.
    #[must_use]
    pub fn remembering(capacity: usize) -> Self {
        Self { evicted: Some(BTreeSet::new()), ..Self::new(capacity) }
    }

    /// Looks an entry up, which keeps it young.
    pub fn get(&mut self, key: &K) -> Option<&mut V> {
        let (age, value) = self.entries.get_mut(key)?;
        self.clock += 1;
        self.by_age.remove(age);
        self.by_age.insert(self.clock, *key);
        *age = self.clock;
        Some(value)
    }

    /// Looks an entry up, and leaves its age as it is.
    #[must_use]
    pub fn peek(&self, key: &K) -> Option<&V> {
        self.entries.get(key).map(|(_, value)| value)
    }

    /// Puts an entry in, at the cost of the oldest if there is no room. `false`: there is no room for any.
    pub fn insert(&mut self, key: K, value: V) -> bool {
        if self.capacity == 0 {
            return false;
        }
        self.clock += 1;
        if let Some((age, _)) = self.entries.insert(key, (self.clock, value)) {
            self.by_age.remove(&age);
        }
        self.by_age.insert(self.clock, key);
        if self.entries.len() > self.capacity
            && let Some((_, oldest)) = self.by_age.pop_first()
        {
            self.entries.remove(&oldest);
            self.evictions += 1;
            if let Some(evicted) = &mut self.evicted {
                evicted.insert(oldest);
            }
        }
        true
    }

    /// Takes an entry out.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        let (age, value) = self.entries.remove(key)?;
        self.by_age.remove(&age);
        Some(value)
    }

    /// All entries, by key.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.entries.iter().map(|(key, (_, value))| (key, value))
    }

    /// How many entries there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether an entry of this key had to go for another since it was last asked, if keys are remembered.
    pub fn take_evicted(&mut self, key: &K) -> bool {
        self.evicted.as_mut().is_some_and(|evicted| evicted.remove(key))
    }

    /// How many entries had to go for others.
    #[must_use]
    pub const fn evictions(&self) -> u64 {
        self.evictions
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_stays_and_the_oldest_goes() {
        let mut lru = Lru::new(2);
        assert!(lru.insert(1, 'a') && lru.insert(2, 'b'));
        assert_eq!(lru.get(&1), Some(&mut 'a'));
        assert!(lru.insert(3, 'c'));
        assert_eq!(lru.iter().map(|(k, _)| *k).collect::<Vec<_>>(), [1, 3]);
        assert_eq!((lru.len(), lru.evictions()), (2, 1));
        assert!(lru.insert(1, 'd'));
        assert_eq!((lru.remove(&1), lru.peek(&3), lru.evictions()), (Some('d'), Some(&'c'), 1));
        assert!(!Lru::new(0).insert(1, 'a'));
    }

    #[test]
    fn evicted_keys_can_be_asked_for() {
        let mut lru = Lru::remembering(1);
        assert!(lru.insert(1, 'a') && lru.insert(2, 'b'));
        assert!(lru.take_evicted(&1) && !lru.take_evicted(&1) && !lru.take_evicted(&2));
    }
}
