//! Who the device is: by its login, and for what its mail is bound to.

use super::Driver;
use crate::{
    auth::accounts::Account,
    proto::{sasl::Credentials, session::Step},
    relay::{Relay, devices::LoggedIn, logins::Verdict},
    telemetry::metrics::{Limit, SessionOutcome},
};

impl Driver {
    pub(super) async fn login(&mut self, credentials: Credentials) -> Result<(), SessionOutcome> {
        let Relay { logins, delivery, .. } = &*self.relay;
        let verdict = if self.profile.accept_any_credentials {
            Verdict::Accepted(Account::default())
        } else {
            logins.judge(self.peer, &credentials, delivery.device_patience).await
        };
        let user = &credentials.user;
        let step = match verdict {
            Verdict::Accepted(account) => {
                // A name that nobody has proven binds to nothing.
                if !self.profile.accept_any_credentials {
                    self.bind(Some((user, account)));
                    self.relay.roster.logged_in(self.peer, &self.device);
                }
                self.session.login(credentials, true)
            }
            Verdict::Refused => {
                // Without the name: with its fields mixed up a device gives its password for one.
                tracing::info!(
                    address = %self.peer,
                    "no line of [auth] users_file has this name with this password: smtp-uplift passwd NAME sets it"
                );
                self.session.login(credentials, false)
            }
            Verdict::Later => {
                self.limited(Limit::LoginWait);
                self.session.login_later()
            }
        };
        match step {
            Step::Close(reply) => {
                self.limited(Limit::Errors);
                self.farewell(&reply).await?;
                Err(SessionOutcome::Faulty)
            }
            Step::Reply(reply) => {
                if reply.code.get() > 400 {
                    self.tell("login refused", &reply);
                }
                self.say(&reply).await
            }
            _ => Ok(()),
        }
    }

    /// Finds out what the device is called, what counts for it, and which mailbox its mail goes through. A login that
    /// names one that is not there any more binds to none of its own.
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
        let proven = login.as_ref().and_then(|(_, account)| account.name.as_deref());
        self.counted_as = devices.counted_as(self.peer, proven).into();
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
