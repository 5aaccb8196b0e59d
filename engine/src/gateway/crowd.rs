//! How many strangers may stand at the door: connections of one address, and TLS handshakes at one time.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

/// Counts connections by address.
#[derive(Debug)]
pub(crate) struct Addresses {
    most: usize,
    open: Mutex<HashMap<IpAddr, usize>>,
}

/// A place that an address has, until it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    addresses: Arc<Addresses>,
    address: IpAddr,
}

impl Addresses {
    pub(crate) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, open: Mutex::default() })
    }

    /// A place, unless the address has as many as it may.
    pub(crate) fn enter(self: &Arc<Self>, address: IpAddr) -> Option<Place> {
        let mut open = self.open.lock();
        let count = open.entry(address).or_default();
        if *count >= self.most {
            return None;
        }
        *count += 1;
        Some(Place { addresses: self.clone(), address })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.addresses.open.lock();
        if let Some(count) = open.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.address);
            }
        }
    }
}

/// Gives turns. When there are none left, the one that has lasted longest ends: an honest handshake takes a few round trips,
/// and whoever wants to keep others out would have to come with all of its connections within that time, again and again.
#[derive(Debug)]
pub(crate) struct Turns {
    most: usize,
    going: Mutex<(u64, BTreeMap<u64, CancellationToken>)>,
}

/// A turn, until it is dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    turns: Arc<Turns>,
    number: u64,
    /// Somebody else needs it.
    pub(crate) over: CancellationToken,
}

impl Turns {
    pub(crate) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most: most.max(1), going: Mutex::default() })
    }

    pub(crate) fn take(self: &Arc<Self>) -> Turn {
        let over = CancellationToken::new();
        let mut going = self.going.lock();
        let (next, open) = &mut *going;
        if open.len() >= self.most
            && let Some((_, oldest)) = open.pop_first()
        {
            oldest.cancel();
        }
        *next += 1;
        open.insert(*next, over.clone());
        Turn { turns: self.clone(), number: *next, over }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.turns.going.lock().1.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_so_many_places_and_others_have_their_own() {
        let addresses = Addresses::new(2);
        let (a, b) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let first = addresses.enter(a).unwrap();
        let _second = addresses.enter(a).unwrap();
        assert!(addresses.enter(a).is_none());
        let other = addresses.enter(b).unwrap();
        drop(first);
        assert!(addresses.enter(a).is_some());
        drop(other);
        assert_eq!(addresses.open.lock().len(), 1, "an address that is gone takes no memory");
    }

    #[test]
    fn the_oldest_turn_ends_when_there_is_none_left() {
        let turns = Turns::new(2);
        let (first, second) = (turns.take(), turns.take());
        assert!(!first.over.is_cancelled());
        let third = turns.take();
        assert!(first.over.is_cancelled() && !second.over.is_cancelled());
        drop((first, second));
        let _fourth = turns.take();
        assert!(!third.over.is_cancelled(), "places that were given back count");
    }
}
