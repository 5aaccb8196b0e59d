//! `tests::fuzz::project` under libFuzzer.
#![no_main]

mod support;

support::target!(project);
