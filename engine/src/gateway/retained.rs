//! The retained messages: the last one of each topic that was published with the retain flag.
//!
//! In memory only, and bounded: a new topic beyond the bounds is refused, an old one may always be replaced
//! by something no larger or be cleared.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use tokio::time::Instant;

use super::message::Message;
use super::topic;

/// The store is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Full;

/// A page of retained messages, and where the next one begins.
#[derive(Debug, Default)]
pub(crate) struct Page {
    pub(crate) messages: Vec<Arc<Message>>,
    /// `None`: that was the last.
    pub(crate) after: Option<Arc<str>>,
}

/// Topics looked at per page: keeps the lock short when few of many topics match.
const SCAN: usize = 4096;

/// All retained messages by topic.
#[derive(Debug)]
pub(crate) struct Retained {
    messages: BTreeMap<Arc<str>, Arc<Message>>,
    bytes: usize,
    most: usize,
    most_bytes: usize,
}

impl Retained {
    pub(crate) fn new(most: usize, most_bytes: usize) -> Self {
        Self { messages: BTreeMap::new(), bytes: 0, most, most_bytes }
    }

    /// Keeps a message, or clears its topic if the payload is empty.
    pub(crate) fn set(&mut self, message: Arc<Message>) -> Result<(), Full> {
        if message.payload.is_empty() {
            if let Some(old) = self.messages.remove(&message.topic) {
                self.bytes -= old.size();
            }
            return Ok(());
        }
        let old = self.messages.get(&message.topic).map_or(0, |old| old.size());
        let bytes = self.bytes - old + message.size();
        if bytes > self.most_bytes && bytes > self.bytes || old == 0 && self.messages.len() >= self.most {
            return Err(Full);
        }
        self.bytes = bytes;
        self.messages.insert(message.topic.clone(), message);
        Ok(())
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.messages.len()
    }

    /// The next messages that a filter matches, in order of topics, `limit` at most.
    pub(crate) fn page(&mut self, filter: &str, after: Option<&Arc<str>>, limit: usize, now: Instant) -> Page {
        let mut page = Page::default();
        if !filter.contains(['+', '#']) {
            page.messages.extend(self.messages.get(filter).filter(|m| !m.expired(now)).cloned());
            return page;
        }
        // Only topics that begin like the filter, up to its first wildcard level, can match.
        let prefix = filter.split_inclusive('/').take_while(|level| !level.starts_with(['+', '#']));
        let prefix = filter.get(..prefix.map(str::len).sum()).unwrap_or_default();
        // `a/#` matches `a` as well, which sorts before `a/`.
        let start = prefix.strip_suffix('/').filter(|_| filter.ends_with("/#")).unwrap_or(prefix);
        let from = match after {
            Some(topic) => Bound::Excluded(topic.clone()),
            None => Bound::Included(Arc::from(start)),
        };
        let mut expired = Vec::new();
        for (seen, (topic, message)) in self.messages.range((from, Bound::Unbounded)).enumerate() {
            // `a-b` sorts between `a` and `a/`: the parent itself is in front of the range, strangers may follow it.
            if !topic.starts_with(prefix) && !topic.starts_with(start) {
                break;
            }
            if page.messages.len() >= limit || seen >= SCAN {
                break;
            }
            page.after = Some(topic.clone());
            if message.expired(now) {
                expired.push(topic.clone());
            } else if topic::matches(filter, topic) {
                page.messages.push(message.clone());
            }
        }
        // Came to the end of the range rather than of the page?
        let last = page.after.take();
        let next = last.and_then(|last| {
            let more = self.messages.range((Bound::Excluded(last.clone()), Bound::Unbounded)).next();
            more.filter(|(topic, _)| topic.starts_with(start)).map(|_| last)
        });
        page.after = next;
        for topic in expired {
            if let Some(old) = self.messages.remove(&topic) {
                self.bytes -= old.size();
            }
        }
        page
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use std::time::Duration;

    fn message(topic: &str, payload: &'static str) -> Arc<Message> {
        Arc::new(Message {
            topic: Arc::from(topic),
            payload: Bytes::from_static(payload.as_bytes()),
            qos: 1,
            retain: true,
            properties: Bytes::new(),
            expires: None,
            publisher: 0,
        })
    }

    fn all(retained: &mut Retained, filter: &str, limit: usize) -> Vec<String> {
        let mut found = Vec::new();
        let mut after = None;
        loop {
            let page = retained.page(filter, after.as_ref(), limit, Instant::now());
            assert!(page.messages.len() <= limit);
            found.extend(page.messages.iter().map(|m| m.topic.to_string()));
            after = page.after;
            if after.is_none() {
                return found;
            }
        }
    }

    #[test]
    fn filters_find_their_topics_page_by_page() {
        let mut retained = Retained::new(100, 1 << 20);
        let topics = ["a", "a-b", "a/b", "a/b/c", "a/c", "b", "devices/1/status", "devices/2/status", "$SYS/x"];
        for topic in topics {
            retained.set(message(topic, "x")).unwrap();
        }
        for filter in ["a", "a/#", "a/+", "+/b", "#", "devices/+/status", "$SYS/#", "nothing/#", "b/#", "a/b/+"] {
            let mut expected: Vec<&str> = topics.into_iter().filter(|t| topic::matches(filter, t)).collect();
            expected.sort_unstable();
            for limit in [1, 2, 100] {
                assert_eq!(all(&mut retained, filter, limit), expected, "{filter} by {limit}");
            }
        }
    }

    #[test]
    fn the_store_is_bounded_and_can_be_cleared() {
        let mut retained = Retained::new(2, 1 << 20);
        retained.set(message("a", "1")).unwrap();
        retained.set(message("b", "1")).unwrap();
        assert_eq!(retained.set(message("c", "1")), Err(Full));
        retained.set(message("a", "2")).unwrap();
        retained.set(message("b", "")).unwrap();
        retained.set(message("c", "1")).unwrap();
        assert_eq!(retained.len(), 2);
        retained.set(message("a", "")).unwrap();
        retained.set(message("c", "")).unwrap();
        assert_eq!(retained.bytes, 0);

        let one = message("a", "1").size();
        let mut small = Retained::new(100, one + 10);
        small.set(message("a", "1")).unwrap();
        assert_eq!(small.set(message("b", "1")), Err(Full));
    }

    #[test]
    fn expired_messages_are_not_found() {
        let now = Instant::now();
        let mut retained = Retained::new(10, 1 << 20);
        let mut short = (*message("a/b", "1")).clone();
        short.expires = Some(now + Duration::from_secs(1));
        retained.set(Arc::new(short)).unwrap();
        assert_eq!(retained.page("a/b", None, 9, now).messages.len(), 1);
        let then = now + Duration::from_secs(1);
        assert_eq!(retained.page("a/b", None, 9, then).messages.len(), 0);
        assert_eq!(retained.page("a/+", None, 9, then).messages.len(), 0);
        assert_eq!(retained.len(), 0, "found dead, taken out");
    }
}
