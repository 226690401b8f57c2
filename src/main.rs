//! The `smtp-uplift` program.

fn main() {}
