//! Who is subscribed to what.
//!
//! Filters without wildcards stand in a hash map, so a hundred thousand devices with topics of their own cost
//! one look-up. Filters with wildcards stand in a tree by level; its depth, and so the recursion over it, is bounded
//! by the number of levels that a filter may have. Generic over the subscriber, so that it is tested without one.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::control::Options;
use super::topic::Filter;

/// Somebody who can be subscribed.
pub(crate) trait Subscriber: Clone {
    /// Its number: one subscriber has one subscription per filter.
    fn number(&self) -> u64;
    /// Whether it is connected: shared messages go to those who are, if any is.
    fn online(&self) -> bool;
}

/// One subscription.
#[derive(Debug, Clone)]
pub(crate) struct Entry<S> {
    pub(crate) who: S,
    pub(crate) options: Options,
    pub(crate) id: Option<u32>,
}

#[derive(Debug)]
struct Group<S> {
    name: Box<str>,
    members: Vec<Entry<S>>,
    turn: AtomicUsize,
}

#[derive(Debug)]
struct Subscribers<S> {
    direct: HashMap<u64, Entry<S>>,
    groups: Vec<Group<S>>,
}

impl<S> Default for Subscribers<S> {
    fn default() -> Self {
        Self { direct: HashMap::new(), groups: Vec::new() }
    }
}

impl<S: Subscriber> Subscribers<S> {
    /// True when the subscription is new.
    fn insert(&mut self, group: Option<&str>, entry: Entry<S>) -> bool {
        let Some(name) = group else {
            return self.direct.insert(entry.who.number(), entry).is_none();
        };
        let at = match self.groups.iter().position(|group| &*group.name == name) {
            Some(at) => at,
            None => {
                self.groups.push(Group { name: name.into(), members: Vec::new(), turn: AtomicUsize::new(0) });
                self.groups.len() - 1
            }
        };
        let Some(group) = self.groups.get_mut(at) else { return false };
        let number = entry.who.number();
        match group.members.iter_mut().find(|member| member.who.number() == number) {
            Some(member) => {
                *member = entry;
                false
            }
            None => {
                group.members.push(entry);
                true
            }
        }
    }

    fn remove(&mut self, group: Option<&str>, number: u64) -> bool {
        let Some(name) = group else {
            return self.direct.remove(&number).is_some();
        };
        let Some(at) = self.groups.iter().position(|group| &*group.name == name) else { return false };
        let Some(group) = self.groups.get_mut(at) else { return false };
        let before = group.members.len();
        group.members.retain(|member| member.who.number() != number);
        let found = group.members.len() < before;
        if group.members.is_empty() {
            self.groups.swap_remove(at);
        }
        found
    }

    fn is_empty(&self) -> bool {
        self.direct.is_empty() && self.groups.is_empty()
    }

    fn each<'a>(&'a self, found: &mut impl FnMut(&'a Entry<S>, bool)) {
        self.direct.values().for_each(|entry| found(entry, false));
        for group in &self.groups {
            if let Some(entry) = group.pick() {
                found(entry, true);
            }
        }
    }
}

impl<S: Subscriber> Group<S> {
    /// In turn, those who are connected first.
    fn pick(&self) -> Option<&Entry<S>> {
        let count = self.members.len();
        let start = self.turn.fetch_add(1, Ordering::Relaxed);
        let in_turn = || (0..count).filter_map(|i| self.members.get(start.wrapping_add(i) % count));
        in_turn().find(|member| member.who.online()).or_else(|| in_turn().next())
    }
}

#[derive(Debug)]
struct Node<S> {
    children: HashMap<Box<str>, Node<S>>,
    /// The filter ends here.
    here: Subscribers<S>,
    /// The filter ends here with `#`.
    below: Subscribers<S>,
}

impl<S> Default for Node<S> {
    fn default() -> Self {
        Self { children: HashMap::new(), here: Subscribers::default(), below: Subscribers::default() }
    }
}

impl<S: Subscriber> Node<S> {
    fn is_empty(&self) -> bool {
        self.children.is_empty() && self.here.is_empty() && self.below.is_empty()
    }

    fn remove(&mut self, levels: &mut std::str::Split<'_, char>, group: Option<&str>, number: u64) -> bool {
        match levels.next() {
            None => self.here.remove(group, number),
            Some("#") => self.below.remove(group, number),
            Some(level) => {
                let Some(child) = self.children.get_mut(level) else { return false };
                let found = child.remove(levels, group, number);
                if child.is_empty() {
                    self.children.remove(level);
                }
                found
            }
        }
    }

    fn each<'a>(&'a self, rest: Option<&str>, first: bool, found: &mut impl FnMut(&'a Entry<S>, bool)) {
        // A wildcard does not match the first level of a topic that begins with `$`.
        let hidden = first && rest.is_some_and(|rest| rest.starts_with('$'));
        if !hidden {
            self.below.each(found);
        }
        let Some(rest) = rest else { return self.here.each(found) };
        let (level, rest) = match rest.split_once('/') {
            Some((level, rest)) => (level, Some(rest)),
            None => (rest, None),
        };
        if let Some(child) = self.children.get(level) {
            child.each(rest, false, found);
        }
        if !hidden && let Some(child) = self.children.get("+") {
            child.each(rest, false, found);
        }
    }
}

/// All subscriptions.
#[derive(Debug)]
pub(crate) struct Trie<S> {
    exact: HashMap<Box<str>, Subscribers<S>>,
    wild: Node<S>,
}

impl<S> Default for Trie<S> {
    fn default() -> Self {
        Self { exact: HashMap::new(), wild: Node::default() }
    }
}

impl<S: Subscriber> Trie<S> {
    /// Adds or replaces a subscription; true when it is new.
    pub(crate) fn insert(&mut self, filter: &Filter<'_>, entry: Entry<S>) -> bool {
        if !filter.wild {
            return self.exact.entry(filter.path.into()).or_default().insert(filter.group, entry);
        }
        let mut node = &mut self.wild;
        for level in filter.path.split('/') {
            if level == "#" {
                return node.below.insert(filter.group, entry);
            }
            node = node.children.entry(level.into()).or_default();
        }
        node.here.insert(filter.group, entry)
    }

    /// Ends a subscription; false when there was none.
    pub(crate) fn remove(&mut self, filter: &Filter<'_>, number: u64) -> bool {
        if filter.wild {
            return self.wild.remove(&mut filter.path.split('/'), filter.group, number);
        }
        let Some(subscribers) = self.exact.get_mut(filter.path) else { return false };
        let found = subscribers.remove(filter.group, number);
        if subscribers.is_empty() {
            self.exact.remove(filter.path);
        }
        found
    }

    /// Everybody whose filter is the topic itself. The flag says: chosen from a shared group.
    pub(crate) fn exact<'a>(&'a self, topic: &str, mut found: impl FnMut(&'a Entry<S>, bool)) {
        if let Some(subscribers) = self.exact.get(topic) {
            subscribers.each(&mut found);
        }
    }

    /// Everybody whose filter has wildcards and matches.
    pub(crate) fn wild<'a>(&'a self, topic: &str, mut found: impl FnMut(&'a Entry<S>, bool)) {
        self.wild.each(Some(topic), true, &mut found);
    }

    /// Whether anybody is subscribed: to the topic itself, and through a wildcard.
    pub(crate) fn interest(&self, topic: &str) -> (bool, bool) {
        let mut wild = false;
        if !self.wild.is_empty() {
            self.wild.peek(Some(topic), true, &mut wild);
        }
        (self.exact.contains_key(topic), wild)
    }
}

impl<S: Subscriber> Node<S> {
    /// Like `each`, without moving the turn of any group.
    fn peek(&self, rest: Option<&str>, first: bool, found: &mut bool) {
        let hidden = first && rest.is_some_and(|rest| rest.starts_with('$'));
        *found |= !hidden && !self.below.is_empty();
        if *found {
            return;
        }
        let Some(rest) = rest else {
            *found |= !self.here.is_empty();
            return;
        };
        let (level, rest) = match rest.split_once('/') {
            Some((level, rest)) => (level, Some(rest)),
            None => (rest, None),
        };
        for (level, allowed) in [(level, true), ("+", !hidden)] {
            if allowed && let Some(child) = self.children.get(level) {
                child.peek(rest, false, found);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::control::Retained;
    use crate::gateway::topic;

    #[derive(Debug, Clone)]
    struct Someone(u64, bool);

    impl Subscriber for Someone {
        fn number(&self) -> u64 {
            self.0
        }
        fn online(&self) -> bool {
            self.1
        }
    }

    fn entry(number: u64, online: bool) -> Entry<Someone> {
        let options = Options { qos: 1, no_local: false, as_published: false, retained: Retained::Always };
        Entry { who: Someone(number, online), options, id: None }
    }

    fn trie(filters: &[(&str, u64)]) -> Trie<Someone> {
        let mut trie = Trie::default();
        for (filter, number) in filters {
            assert!(trie.insert(&topic::filter(filter).unwrap(), entry(*number, true)));
        }
        trie
    }

    fn matched(trie: &Trie<Someone>, topic: &str) -> Vec<u64> {
        let mut all = Vec::new();
        trie.exact(topic, |entry, _| all.push(entry.who.0));
        let exact = all.len();
        trie.wild(topic, |entry, _| all.push(entry.who.0));
        assert_eq!(trie.interest(topic), (exact > 0, all.len() > exact), "{topic}");
        all.sort_unstable();
        all
    }

    #[test]
    fn the_tree_agrees_with_plain_matching() {
        let filters = [
            "#", "+", "+/+", "a", "a/b", "a/+", "a/#", "+/b", "a/+/c", "+/+/#", "$SYS/#", "$SYS/+", "/", "/+", "a//c",
            "é/+", "a/b/c/#", "+/b/+",
        ];
        let numbered: Vec<(&str, u64)> = filters.iter().copied().zip(1..).collect();
        let mut trie = trie(&numbered);
        for topic in ["a", "a/b", "a/b/c", "/", "a/", "$SYS", "$SYS/x", "$SYS/x/y", "a//c", "é/temp", "x", "/x", ""] {
            let expected: Vec<u64> =
                numbered.iter().filter(|(f, _)| topic::matches(f, topic)).map(|(_, n)| *n).collect();
            assert_eq!(matched(&trie, topic), expected, "{topic}");
        }
        for (filter, number) in &numbered {
            let filter = topic::filter(filter).unwrap();
            assert!(!trie.remove(&filter, 99));
            assert!(trie.remove(&filter, *number));
            assert!(!trie.remove(&filter, *number));
        }
        assert!(trie.exact.is_empty() && trie.wild.is_empty(), "nothing stays behind");
    }

    #[test]
    fn a_repeated_subscription_replaces_the_old_one() {
        let mut trie = trie(&[("a/+", 1)]);
        let mut again = entry(1, true);
        again.options.qos = 2;
        assert!(!trie.insert(&topic::filter("a/+").unwrap(), again));
        let mut qos = Vec::new();
        trie.wild("a/b", |entry, _| qos.push(entry.options.qos));
        assert_eq!(qos, [2]);
    }

    #[test]
    fn a_shared_group_takes_turns_among_those_who_are_there() {
        let mut trie = trie(&[("$share/g/a/+", 1), ("$share/g/a/+", 2), ("$share/h/a/b", 3), ("a/b", 4)]);
        trie.insert(&topic::filter("$share/g/a/+").unwrap(), entry(5, false));
        let mut counts = std::collections::BTreeMap::new();
        for _ in 0..6 {
            trie.wild("a/b", |entry, shared| {
                assert!(shared);
                *counts.entry(entry.who.0).or_insert(0) += 1;
            });
        }
        assert_eq!(counts.values().sum::<i32>(), 6, "one each");
        assert!(counts[&1] >= 2 && counts[&2] >= 2 && !counts.contains_key(&5), "{counts:?}");
        assert_eq!(matched(&trie, "a/b").len(), 3);
        assert!(trie.remove(&topic::filter("$share/g/a/+").unwrap(), 1));
        assert!(trie.remove(&topic::filter("$share/g/a/+").unwrap(), 2));
        let mut last = Vec::new();
        trie.wild("a/b", |entry, _| last.push(entry.who.0));
        assert_eq!(last, [5], "away, but the only one");
    }
}
