//! `tests::fuzz::snapshot` under libFuzzer.
#![no_main]

mod support;

support::target!(snapshot);
