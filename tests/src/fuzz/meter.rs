//! Memory in proportion to the input: how much a body may allocate.
//!
//! Counting needs a global allocator, which only a binary can choose: it says here how to read the count. Where
//! none is installed nothing is measured. What is counted is everything ever allocated, freed or not, by all threads.

use std::sync::OnceLock;

static READ: OnceLock<fn() -> usize> = OnceLock::new();

/// From now on memory is measured: `read` gives the bytes that were allocated since the process began.
pub fn measure_with(read: fn() -> usize) {
    READ.get_or_init(|| read);
}

/// Runs `body` on an input of `len` bytes; it may allocate `fixed` bytes and `each` for every byte of the input.
pub(super) fn bounded<T>(len: usize, fixed: usize, each: usize, body: impl FnOnce() -> T) -> T {
    let Some(read) = READ.get() else { return body() };
    let before = read();
    let result = body();
    let used = read() - before;
    let limit = fixed + each * len;
    assert!(used <= limit, "{used} bytes were allocated for an input of {len} bytes, {limit} are the limit");
    result
}
