//! Who the device is: by its login, and for what its mail is bound to.

use std::time::Duration;

use super::Driver;
use crate::{
    auth::accounts::{Account, Accounts},
    proto::{sasl::Credentials, session::Step},
    relay::{Relay, devices::LoggedIn},
    telemetry::metrics::SessionOutcome,
};

/// How long a refused login is kept waiting: guessing is slow.
const REFUSED_LOGIN: Duration = Duration::from_secs(1);

impl Driver {
    pub(super) async fn login(&mut self, credentials: Credentials) -> Result<(), SessionOutcome> {
        let (accounts, given) = (self.relay.accounts.clone(), credentials.clone());
        let any = self.profile.accept_any_credentials;
        // Argon2 takes its time and memory: not the event loop's, and not for everybody at once.
        let verifying = self.relay.logins.acquire().await;
        let judged = tokio::task::spawn_blocking(move || {
            if any { Some(Account::default()) } else { accept_login(&accounts, &given) }
        });
        let account = judged.await.ok().flatten();
        drop(verifying);
        let accepted = account.is_some();
        if let Some(account) = account {
            self.bind(Some((&credentials.user, account)));
        } else {
            let listener = &self.door.listener.name;
            tracing::warn!(device = %self.peer, listener, user = credentials.user, "login refused");
            tokio::time::sleep(REFUSED_LOGIN).await;
        }
        match self.session.login(credentials, accepted) {
            Step::Close(reply) => {
                self.farewell(&reply).await?;
                Err(SessionOutcome::Faulty)
            }
            Step::Reply(reply) => self.say(&reply).await,
            _ => Ok(()),
        }
    }

    /// Finds out what the device is called, what counts for it, and which mailbox its mail goes through. A login that names one that is not there any more
    /// binds to none of its own.
    pub(super) fn bind(&mut self, login: Option<(&str, Account)>) {
        let Relay { mailboxes, devices, .. } = &*self.relay;
        let mailbox = login.as_ref().and_then(|(user, account)| {
            let named = account.mailbox.as_deref()?;
            if mailboxes.find(named).is_none() {
                tracing::warn!(
                    user, mailbox = named,
                    "users_file names a mailbox that is not configured: add [[mailbox]], or correct the line"
                );
            }
            mailboxes.find(named).map(|mailbox| mailbox.address())
        });
        let login = login.as_ref().map(|(user, _)| LoggedIn { user, mailbox });
        self.terms = devices.terms(self.peer, login.map(|login| login.user));
        self.device = match self.terms.name() {
            Some(name) => name.into(),
            None => self.peer.to_string().into(),
        };
        let bound = devices.mailbox(self.peer, login, self.door.listener.mailbox.as_deref());
        self.bound = bound.and_then(|address| mailboxes.find(address)).cloned();
    }
}

/// A users file that went bad refuses everybody, and says so.
fn accept_login(accounts: &Accounts, credentials: &Credentials) -> Option<Account> {
    accounts.accept(credentials).unwrap_or_else(|error| {
        tracing::error!(%error, "nobody can log in");
        None
    })
}
