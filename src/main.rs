//! The `frostline` command.

use std::process::ExitCode;

/// Requests allocate and free on different threads, which it is quick at.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    frostline::cli::main()
}
