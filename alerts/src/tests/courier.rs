//! When messages are tried.

use device::time::{SECOND, Timestamp};

use crate::courier::{Courier, Next, Patience};

const PATIENCE: Patience = Patience { together: 2, first_ns: SECOND, longest_ns: 8 * SECOND };

fn seconds(seconds: i64) -> Timestamp {
    Timestamp(seconds * SECOND)
}

fn begin(courier: &mut Courier, now: i64) -> Option<u64> {
    match courier.next(seconds(now)) {
        Next::Try(number) => {
            courier.begin(number);
            Some(number)
        }
        _ => None,
    }
}

#[test]
fn messages_of_one_incident_go_one_after_the_other_and_those_of_others_beside_them() {
    let mut courier = Courier::new(PATIENCE);
    for (number, incident) in [(1, "x"), (2, "x"), (3, "y"), (4, "z"), (1, "x")] {
        courier.take(number, incident);
    }
    assert_eq!((begin(&mut courier, 0), begin(&mut courier, 0), begin(&mut courier, 0)), (Some(1), Some(3), None));
    courier.accepted(3);
    assert_eq!((begin(&mut courier, 0), begin(&mut courier, 0)), (Some(4), None), "2 waits for 1");
    courier.accepted(1);
    assert_eq!(begin(&mut courier, 0), Some(2));
    courier.accepted(2);
    courier.accepted(4);
    assert_eq!((courier.next(seconds(9)), courier.messages().count()), (Next::Nothing, 0));
}

#[test]
fn a_receiver_that_is_down_is_asked_more_and_more_rarely_by_one_at_a_time() {
    let mut courier = Courier::new(PATIENCE);
    (1..=9).for_each(|number| courier.take(number, &number.to_string()));
    let (mut now, mut tries) = (seconds(0), Vec::new());
    while now < seconds(100) {
        match courier.next(now) {
            Next::Try(number) => {
                courier.begin(number);
                tries.push(now.0);
                assert!(tries.len() == 1 || courier.next(now) == Next::Nothing);
                courier.failed(number, now, u64::MAX - 1, None);
            }
            Next::At(at) => now = at,
            Next::Nothing => panic!("nothing to do"),
        }
    }
    let pauses: Vec<i64> = tries.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(pauses[0] >= SECOND / 2 && pauses[0] <= SECOND, "{pauses:?}");
    assert!(pauses.windows(2).all(|pair| pair[1] >= pair[0] || pair[1] >= 4 * SECOND), "{pauses:?}");
    assert!(pauses.iter().all(|pause| *pause <= 8 * SECOND) && tries.len() < 30, "{}", tries.len());
    // It is up again: all go at once.
    let then = now.plus(8 * SECOND);
    let Next::Try(first) = courier.next(then) else { panic!() };
    courier.begin(first);
    courier.accepted(first);
    let mut left = 0;
    while let Next::Try(number) = courier.next(then) {
        courier.begin(number);
        courier.accepted(number);
        left += 1;
    }
    assert_eq!((left, courier.failures()), (8, 0));
}

#[test]
fn a_message_that_is_refused_holds_up_no_other_and_a_wish_is_heard() {
    let mut courier = Courier::new(PATIENCE);
    (1..=3).for_each(|number| courier.take(number, &number.to_string()));
    assert_eq!(begin(&mut courier, 0), Some(1));
    courier.failed(1, seconds(0), 0, Some(3 * SECOND));
    assert_eq!(courier.next(seconds(2)), Next::At(seconds(3)));
    assert_eq!(begin(&mut courier, 3), Some(2), "fresh ones first");
    courier.accepted(2);
    assert_eq!((begin(&mut courier, 3), begin(&mut courier, 3)), (Some(3), Some(1)));
    courier.drop(1);
    courier.failed(1, seconds(3), 0, None);
    courier.failed(3, seconds(3), 0, Some(i64::MAX));
    let Next::At(at) = courier.next(seconds(3)) else { panic!() };
    assert!(at <= seconds(11), "nobody wishes for more than the longest pause");
}
