//! Words with systemd (`Type=notify`). Without it, which is where `NOTIFY_SOCKET` is not set, nobody hears them.

use std::time::Duration;

use sd_notify::NotifyState;

/// Devices are served.
pub fn ready() {
    say(NotifyState::Ready);
}

/// Sessions are finished, then the relay ends.
pub fn stopping() {
    say(NotifyState::Stopping);
}

/// Says that the event loop still turns, twice in the time that the unit's `WatchdogSec` allows.
pub async fn watchdog() {
    let Some(limit) = sd_notify::watchdog_enabled() else { return };
    let mut pulse = tokio::time::interval((limit / 2).max(Duration::from_millis(1)));
    loop {
        pulse.tick().await;
        say(NotifyState::Watchdog);
    }
}

fn say(state: NotifyState) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "cannot talk to systemd through NOTIFY_SOCKET");
    }
}
