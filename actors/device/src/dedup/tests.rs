//! The dedup window against a plain set of numbers.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

#[test]
fn an_epoch_in_order_is_small() {
    assert_eq!(size_of::<EpochState>(), 32);
    let mut state = EpochState::default();
    for number in 1..=10_000 {
        assert!(state.continues_at(number));
        state.stage(number, number);
        assert_eq!(state.apply(number, number, Account::Stored), 1);
    }
    assert_eq!((state.cum(), state.stored(), state.disorder.is_none()), (10_000, 10_000, true));
}

#[test]
fn what_disorder_needed_is_given_back() {
    let mut state = EpochState::default();
    state.stage(2, 5);
    state.apply(2, 5, Account::Stored);
    assert_eq!((state.cum(), state.holes(), state.has_holes()), (0, vec![(1, 1)], true));
    state.stage(1, 1);
    assert_eq!(state.frontier(), 5);
    state.apply(1, 1, Account::Stored);
    assert_eq!((state.cum(), state.has_holes(), state.disorder.is_none()), (5, false, true));
}

#[test]
fn zero_is_never_confused_with_nothing_yet() {
    let mut state = EpochState::default();
    assert_eq!(state.place(0), Place::New);
    state.stage(0, 0);
    assert_eq!((state.place(0), state.is_quiet()), (Place::Staged, false));
    state.apply(0, 0, Account::Stored);
    assert_eq!(
        (state.place(0), state.place(1), state.stored(), state.is_quiet()),
        (Place::Durable, Place::New, 1, true)
    );
}

#[test]
fn losses_move_cum_far() {
    let mut state = EpochState::default();
    state.apply(3, 3, Account::Stored);
    assert_eq!(state.apply(1, 1_000_000, Account::Lost), 999_999);
    assert_eq!((state.cum(), state.stored(), state.tally().lost), (1_000_000, 1, 999_999));
}

#[test]
fn a_drawn_epoch_has_no_hole_below_its_first_number() {
    let mut state = EpochState::above(41);
    state.stage(42, 42);
    state.apply(42, 42, Account::Stored);
    assert_eq!((state.cum(), state.stored(), state.holes()), (42, 1, vec![]));
    state.apply_early();
    assert_eq!(state.stored(), 2);
}

/// What may happen to an epoch: ranges are admitted (new numbers only), applied in that order, or taken back.
#[derive(Debug, Clone)]
enum Step {
    Admit(u64, u64),
    Apply,
    TakeBack,
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1u64..9000, 0u64..40).prop_map(|(from, len)| Step::Admit(from, from + len)),
        4 => (0u64..80, 0u64..20).prop_map(|(from, len)| Step::Admit(from, from + len)),
        4 => Just(Step::Apply),
        1 => Just(Step::TakeBack),
        1 => Just(Step::Restart),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn it_agrees_with_sets(steps in prop::collection::vec(step(), 0..60)) {
        let mut state = EpochState::default();
        let mut durable = BTreeSet::new();
        let mut staged: Vec<(u64, u64)> = Vec::new();
        for step in steps {
            match step {
                Step::Admit(from, to) if to <= state.frontier() + WINDOW => {
                    let mut number = from;
                    while number <= to {
                        let mut end = number;
                        if state.place(number) == Place::New {
                            while end < to && state.place(end + 1) == Place::New {
                                end += 1;
                            }
                            state.stage(number, end);
                            staged.push((number, end));
                        }
                        number = end + 1;
                    }
                }
                Step::Admit(..) => {}
                Step::Apply if !staged.is_empty() => {
                    let (from, to) = staged.remove(0);
                    prop_assert_eq!(state.apply(from, to, Account::Stored), to - from + 1);
                    durable.extend(from..=to);
                }
                Step::Apply => {}
                Step::TakeBack => if let Some((from, to)) = staged.pop() {
                    state.unstage(from, to);
                },
                Step::Restart => {
                    let above: Vec<_> = state.above_cum().iter().collect();
                    state = EpochState::from_parts(state.cum(), state.has_zero(), 0, state.tally(), &above);
                    staged.clear();
                }
            }
            let in_flight: BTreeSet<u64> = staged.iter().flat_map(|(from, to)| *from..=*to).collect();
            let cum = (1..).find(|number| !durable.contains(number)).unwrap() - 1;
            prop_assert_eq!(state.cum(), cum);
            let known = |number: u64| durable.contains(&number) || in_flight.contains(&number);
            prop_assert_eq!(state.frontier(), (1..).find(|number| !known(*number)).unwrap() - 1);
            let highest = durable.iter().chain(&in_flight).max().copied().unwrap_or(0);
            prop_assert_eq!(state.highest(), highest);
            for number in (0..140).chain(highest.saturating_sub(60)..highest + 20) {
                let place = match () {
                    () if durable.contains(&number) => Place::Durable,
                    () if in_flight.contains(&number) => Place::Staged,
                    () => Place::New,
                };
                prop_assert_eq!(state.place(number), place, "{}", number);
            }
            let missing: Vec<u64> = state.missing(1, highest).into_iter().flat_map(|(from, to)| from..=to).collect();
            prop_assert_eq!(missing, (1..=highest).filter(|number| !known(*number)).collect::<Vec<_>>());
            let top = durable.iter().max().copied().unwrap_or(0);
            let holes: Vec<u64> = state.holes().into_iter().flat_map(|(from, to)| from..=to).collect();
            prop_assert_eq!(holes, (1..=top).filter(|number| !durable.contains(number)).collect::<Vec<_>>());
            prop_assert_eq!(state.stored(), durable.len() as u64);
            prop_assert_eq!(state.is_quiet(), staged.is_empty());
        }
    }
}
