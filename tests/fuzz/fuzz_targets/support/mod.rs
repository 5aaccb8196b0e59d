//! What every target has: an allocator that counts, so that memory can be held to the input's size.

pub(crate) use libfuzzer_sys::fuzz_target;

#[global_allocator]
pub(crate) static ALLOCATOR: cap::Cap<std::alloc::System> = cap::Cap::new(std::alloc::System, usize::MAX);

/// A target around the body of that name.
macro_rules! target {
    ($body:ident) => {
        $crate::support::fuzz_target!(init: tests::fuzz::measure_with(|| $crate::support::ALLOCATOR.total_allocated()), |data: &[u8]| {
            tests::fuzz::$body(data);
        });
    };
}
pub(crate) use target;
