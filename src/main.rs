//! The `frostline` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    frostline::cli::main()
}
