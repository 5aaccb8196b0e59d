//! The `weir` program; everything is in the library.

use std::process::ExitCode;

// Small messages are allocated by one thread and freed by another; mimalloc does that at half the cost.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    engine::cli::main()
}
