//! The `frostline` command.

use std::process::ExitCode;

/// Requests allocate and free on different threads, which it is quick at. What it keeps of freed memory every thread gives
/// back.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    frostline::cli::main()
}
