//! When a certificate is due to be renewed: the one rule by which devices begin and the engine reminds.

use crate::id::DeviceId;
use crate::time::{SECOND, Timestamp};

const DAY: i64 = 86_400 * SECOND;
/// A certificate is due when it is valid for so long, or for a third of its life if that is less.
const LEFT: i64 = 30 * DAY;
/// Certificates are valid from so long before they were made, for clocks that are behind: that is no part of their life.
const BACKDATE: i64 = DAY;
/// The devices of a fleet that were enrolled in one hour are due over this part of the time that is left: 5 days of 30.
const SPREAD: i64 = 6;

/// From when on a certificate of this device, with these limits, is to be renewed. Always before its end, and the same whoever
/// asks: the spread follows from the device's name.
///
/// ```
/// use device::{id::DeviceId, renewal::renewal_due, time::{SECOND, Timestamp}};
/// let day = 86_400 * SECOND;
/// let due = renewal_due(Timestamp(-day), Timestamp(365 * day), &DeviceId::new("pump-7").unwrap());
/// assert!((335 * day..340 * day).contains(&due.0));
/// ```
pub fn renewal_due(not_before: Timestamp, not_after: Timestamp, device: &DeviceId) -> Timestamp {
    let whole = not_after.since(not_before).max(0);
    let life = if whole > BACKDATE { whole - BACKDATE } else { whole };
    let left = LEFT.min(life / 3);
    not_after.plus(-left + spread(device, left / SPREAD))
}

/// This device's place in a length of time over which a fleet is spread, in nanoseconds: the same whoever asks.
pub fn spread(device: &DeviceId, over: i64) -> i64 {
    // FNV-1a: small, and the same on every machine.
    let hash = device
        .as_str()
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    // The low bits of this hash are the good ones, and the length is far from a power of two.
    i64::try_from(hash % u64::try_from(over).unwrap_or(0).max(1)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn due(days_before: i64, days_after: i64, device: &str) -> i64 {
        let (from, to) = (Timestamp(-days_before * DAY), Timestamp(days_after * DAY));
        renewal_due(from, to, &DeviceId::new(device).unwrap()).0
    }

    #[test]
    fn a_long_one_is_due_a_month_before_its_end_and_a_short_one_at_a_third() {
        for device in ["a", "b", "pump-7"] {
            assert!((335 * DAY..340 * DAY).contains(&due(1, 365, device)), "{device}");
            assert!((60 * DAY..65 * DAY).contains(&due(1, 90, device)), "{device}");
            assert!((2 * DAY..2 * DAY + DAY / 6).contains(&due(1, 3, device)), "{device}");
            assert!((16 * DAY / 24..DAY).contains(&due(1, 1, device)), "the day before is no life");
            assert_eq!(due(0, 0, device), 0, "one that has no life is due at its end");
        }
    }

    #[test]
    fn a_fleet_is_spread_evenly_over_five_days() {
        let mut days = [0; 5];
        for i in 0..10_000 {
            let day = (due(1, 365, &format!("device-{i}")) - 335 * DAY) / DAY;
            days[usize::try_from(day).unwrap()] += 1;
        }
        assert!(days.iter().all(|count| (1_800..2_200).contains(count)), "{days:?}");
    }
}
