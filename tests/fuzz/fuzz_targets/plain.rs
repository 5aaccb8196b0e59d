//! `tests::fuzz::plain` under libFuzzer.
#![no_main]

mod support;

support::target!(plain);
