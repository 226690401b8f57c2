//! The `smtp-uplift` program: exit codes, nothing else.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(smtp_uplift::cli::main())
}
