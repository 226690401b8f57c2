//! Points at which a test kills the process, to see what a restart makes of it.

/// A point that a write passes. With `SMTP_UPLIFT_KILL_AT=name`, or `name:N` for the N-th time, a build for tests
/// kills itself there with SIGKILL; `tests/durability` sets it. A release build has none of this.
///
/// | Name | What is on disk |
/// |---|---|
/// | `body-written` | large mail data, perhaps, under `incoming/` |
/// | `body-synced` | those, for certain |
/// | `body-renamed` | those, at their place in `bodies/` |
/// | `row-inserted` | the same: the row's transaction is still open |
/// | `committed` | the message; nobody was told yet |
/// | `lease-committed` | messages as *leased*; nobody was told yet |
/// | `settled` | what became of a message; the file of its mail data, if it is *done*, may still be there |
#[cfg(debug_assertions)]
pub fn point(name: &str) {
    use std::sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    };

    use rustix::process::{Signal, getpid, kill_process};

    static WANTED: OnceLock<Option<(String, u64)>> = OnceLock::new();
    static PASSED: AtomicU64 = AtomicU64::new(0);
    let wanted = WANTED.get_or_init(|| {
        let text = std::env::var("SMTP_UPLIFT_KILL_AT").ok()?;
        let (name, time) = text.split_once(':').unwrap_or((&text, "1"));
        Some((name.to_owned(), time.parse().ok()?))
    });
    if let Some((wanted, time)) = wanted
        && wanted == name
        && PASSED.fetch_add(1, Ordering::SeqCst) + 1 == *time
    {
        let _ = kill_process(getpid(), Signal::KILL);
    }
}

/// A point at which a build for tests can be killed.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn point(_name: &str) {}
