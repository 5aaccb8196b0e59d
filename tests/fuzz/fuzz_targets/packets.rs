//! `tests::fuzz::packets` under libFuzzer.
#![no_main]

mod support;

support::target!(packets);
