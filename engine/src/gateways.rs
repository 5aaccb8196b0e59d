//! Gateways that are away, and the devices that cannot be heard without them: said to whoever tells people of incidents.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use access::registry::Registry;
use alerts::{Happening, Keeper};
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::gateway::Hub;

/// How often connections are looked at.
const EVERY: Duration = Duration::from_secs(1);

/// A gateway counts as away when it has not been connected for so long; also after a start, in which all come back.
const AWAY: Duration = Duration::from_secs(10);

/// The devices that cannot be heard, by the gateway that is missed: none of their gateways is there, nor they themselves.
fn unheard(
    gateways: &BTreeMap<String, BTreeSet<String>>,
    is_away: impl Fn(&str) -> bool,
    is_here: impl Fn(&str) -> bool,
) -> BTreeMap<String, BTreeSet<String>> {
    let heard: BTreeSet<&String> =
        gateways.iter().filter(|(gateway, _)| !is_away(gateway)).flat_map(|(_, children)| children).collect();
    let mut taken: BTreeSet<&String> = BTreeSet::new();
    let mut all = BTreeMap::new();
    for (gateway, children) in gateways.iter().filter(|(gateway, _)| is_away(gateway)) {
        let missed = children.iter().filter(|child| !heard.contains(*child) && !is_here(child));
        let missed: BTreeSet<String> = missed.filter(|child| taken.insert(*child)).cloned().collect();
        if !missed.is_empty() {
            all.insert(gateway.clone(), missed);
        }
    }
    all
}

/// What has to be said for the desk to know what is so.
fn news(
    known: &BTreeMap<String, BTreeSet<String>>,
    now: BTreeMap<String, BTreeSet<String>>,
) -> Vec<(String, BTreeSet<String>)> {
    let back = known.keys().filter(|gateway| !now.contains_key(*gateway));
    let mut all: Vec<(String, BTreeSet<String>)> = back.map(|gateway| (gateway.clone(), BTreeSet::new())).collect();
    all.extend(now.into_iter().filter(|(gateway, children)| known.get(gateway) != Some(children)));
    all
}

/// Watches gateways until the engine stops.
pub(crate) async fn watch(
    registry: Arc<Registry>,
    (hub, desk): (Arc<Hub>, Arc<Keeper>),
    clock: Clock,
    stop: CancellationToken,
) {
    let start = Instant::now();
    let watching = async {
        let mut last: BTreeMap<String, Instant> = BTreeMap::new();
        loop {
            tokio::time::sleep(EVERY).await;
            let gateways = registry.look(|state| state.gateways().clone());
            last.retain(|gateway, _| gateways.contains_key(gateway));
            for gateway in gateways.keys().filter(|gateway| hub.is_online(gateway)) {
                last.insert(gateway.clone(), Instant::now());
            }
            let is_away = |gateway: &str| last.get(gateway).unwrap_or(&start).elapsed() >= AWAY;
            let now = unheard(&gateways, is_away, |child| hub.is_online(child));
            for (device, children) in news(&desk.with(alerts::Desk::gateways), now) {
                match children.len() {
                    0 => tracing::info!(gateway = device, "a gateway is back; the devices behind it are told of again"),
                    devices => {
                        tracing::warn!(
                            gateway = device,
                            devices,
                            "a gateway is away; nobody is told of the devices behind it"
                        );
                    }
                }
                desk.happen(clock(), Happening::Gateway { device, children });
            }
        }
    };
    let _ = stop.run_until_cancelled(watching).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sets(all: &[(&str, &[&str])]) -> BTreeMap<String, BTreeSet<String>> {
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        all.iter().map(|(name, children)| ((*name).to_owned(), set(children))).collect()
    }

    #[test]
    fn a_device_is_unheard_when_nobody_speaks_for_it() {
        let gateways = sets(&[("g1", &["a", "b", "c"]), ("g2", &["b", "d"]), ("g3", &["a"])]);
        let away = |names: &'static [&'static str]| unheard(&gateways, |g| names.contains(&g), |child| child == "c");
        assert_eq!(away(&[]), sets(&[]));
        assert_eq!(away(&["g1"]), sets(&[]), "a and b are heard through others, c speaks for itself");
        assert_eq!(away(&["g1", "g3"]), sets(&[("g1", &["a"])]), "once, not for each");
        assert_eq!(away(&["g1", "g2", "g3"]), sets(&[("g1", &["a", "b"]), ("g2", &["d"])]));
    }

    #[test]
    fn only_what_has_changed_is_said() {
        let known = sets(&[("g1", &["a"]), ("g2", &["b"]), ("g3", &["c"])]);
        let said = news(&known, sets(&[("g2", &["b"]), ("g3", &["c", "d"]), ("g4", &["e"])]));
        let said: Vec<String> =
            said.iter().map(|(gateway, children)| format!("{gateway} {}", children.len())).collect();
        assert_eq!(said, ["g1 0", "g3 2", "g4 1"]);
    }
}
