//! One device's session, from its greeting to its end, and what goes up to the smarthost meanwhile.
//!
//! [`session`] drives the protocol, [`transaction`] is what a device has begun, [`pace`] tells a slow device from a
//! stalled one, [`answer`] alone turns what went wrong into a reply.
//!
//! Where the relay keeps messages: [`replay`] has the data, [`attempt`] is one try to hand them on, [`course`] and
//! [`aftermath`] say what follows from it, [`acceptance`] answers the device's dot, [`courier`] empties the spool by
//! [`delivery`],
//! [`stops`] knows what waits for somebody to change a setting, [`notice`] and [`notifier`] tell people,
//! and [`keeper`] has what they share.
//!
//! [`devices`] knows what counts for a device and which mailbox it is bound to, [`mailboxes`] chooses one for the
//! others; [`logins`] judges who logs in, [`quotas`] counts what each device sends, [`roster`] remembers what devices
//! have done.

pub mod acceptance;
pub mod aftermath;
pub mod answer;
pub mod attempt;
pub mod courier;
pub mod course;
pub mod delivery;
pub mod devices;
pub mod keeper;
pub mod logins;
pub mod mailboxes;
pub mod notice;
pub mod notifier;
pub mod pace;
pub mod quotas;
pub mod replay;
pub mod roster;
pub mod session;
pub mod stops;
pub mod transaction;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::{
    devices::Devices,
    keeper::Keeper,
    logins::Logins,
    mailboxes::{Mailbox, Mailboxes},
    quotas::DeviceQuotas,
    roster::Roster,
};
use crate::{
    config::{Delivery, Limits, Listener, ReceivedDetail},
    policy::{
        Patterns, TlsProfile,
        crowd::Crowd,
        sender::{Rewrite, Rule},
    },
    telemetry::{metrics::Metrics, once::Once, transcript::Transcripts},
    transport::{handshakes::Handshakes, server_tls::ServerTls},
};

/// What all sessions share.
pub struct Relay {
    /// Our name.
    pub hostname: String,
    /// What the Received field says of devices.
    pub received: ReceivedDetail,
    /// What a device may use up.
    pub limits: Limits,
    /// How long a device may be kept waiting.
    pub delivery: Delivery,
    /// Who may log in, and who has tried.
    pub logins: Logins,
    /// What each device has sent.
    pub quotas: Arc<DeviceQuotas>,
    /// What devices call themselves, and whether they share one address.
    pub crowd: Mutex<Crowd>,
    /// Places for TLS handshakes.
    pub handshakes: Arc<Handshakes>,
    /// What is known of single devices.
    pub devices: Devices,
    /// What devices have done.
    pub roster: Arc<Roster>,
    /// What messages go through.
    pub mailboxes: Arc<Mailboxes>,
    /// What keeps messages; `None` where every answer is the smarthost's own.
    pub keeper: Option<Arc<Keeper>>,
    /// Devices whose MAIL had parameters that were ignored.
    pub ignored: Once,
    /// What is counted.
    pub metrics: Metrics,
    /// What was said.
    pub transcripts: Arc<Transcripts>,
    /// Cancelled when sessions without a transaction have to end.
    pub drain: CancellationToken,
}

impl Relay {
    /// What mail may call itself at a mailbox, of what its device may send as.
    pub fn rule(&self, mailbox: &Mailbox, senders: Option<&Patterns>) -> Arc<Rule> {
        Arc::new(Rule {
            rewrite: self.mailboxes.rewrite(),
            mailbox: mailbox.address().to_owned(),
            send_as: mailbox.send_as().clone(),
            senders: senders.cloned(),
        })
    }

    /// As whom mail asks for a mailbox: as nobody where its reverse-path is rewritten everywhere.
    pub fn asks_as<'a>(&self, reverse_path: &'a str, senders: Option<&Patterns>) -> &'a str {
        let goes = self.mailboxes.rewrite() == Rewrite::Keep
            || senders.is_none_or(|senders| senders.hold(reverse_path));
        if goes { reverse_path } else { "" }
    }

    /// What a kept message may be sent as; `device` is what its row has ([`transaction::Transaction::kept_as`]).
    pub fn senders(&self, device: &str) -> Option<&Patterns> {
        self.devices.named(device)?.senders.as_ref()
    }

    /// What an operator should know of the devices as a whole.
    pub fn warning(&self) -> Option<String> {
        let crowd = self.crowd.lock().unwrap_or_else(PoisonError::into_inner);
        let (address, names) = crowd.shared()?;
        let address = address.map_or_else(|| "this machine".to_owned(), |it| it.to_string());
        Some(format!(
            "all devices come from {address}, under {names} names or more: behind NAT or a proxy the list of addresses \
             admits whoever reaches the port; give the container the host's network, use the PROXY protocol, or write \
             auth = \"require\": docs/howto/access.md"
        ))
    }

    /// An operator's word: whatever is stopped or away is tried now.
    pub fn try_again(&self) {
        self.mailboxes.try_again();
        if let Some(keeper) = &self.keeper {
            keeper.wake.notify_one();
        }
    }
}

/// A listener as its sessions know it.
pub struct Door {
    /// Its settings.
    pub listener: Listener,
    /// Our side of TLS.
    pub tls: Contexts,
}

/// Our side of TLS for each profile that some device may need; it changes with the certificate.
pub type Contexts = Arc<HashMap<TlsProfile, watch::Receiver<ServerTls>>>;
