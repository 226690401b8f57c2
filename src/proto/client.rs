//! The relay's side of a connection to the smarthost: [`Opening`] leads from the greeting to a
//! login, and [`mail_command`] says what a MAIL may carry.
//!
//! ```text
//!             220            250, STARTTLS offered      220       secured()       250           235
//! Greeting ─────────► Ehlo ────────────────────► StartTls ──► Handshake ──► Ehlo ───► Auth ────────► Ready
//!                      │                                                      ▲  │        ▲ │ 334
//!                      └── no STARTTLS wanted (implicit TLS, loopback) ───────┘  │        └─┘
//!                                                                                └── no login ──────► Ready
//! ```

use std::fmt;

use thiserror::Error;

use super::{
    capabilities::Capabilities,
    command::Command,
    envelope::Envelope,
    param::MailParams,
    path::ForwardPath,
    reply::Reply,
    sasl::{ClientExchange, Login},
};

/// Where in a connection a reply of the smarthost came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// The greeting.
    Connect,
    /// The answer to EHLO.
    Ehlo,
    /// The answer to STARTTLS.
    StartTls,
    /// The TLS handshake.
    Tls,
    /// Any answer in the AUTH exchange.
    Auth,
    /// The answer to MAIL.
    Mail,
    /// The answer to RCPT.
    Rcpt,
    /// The answer to DATA.
    Data,
    /// The answer to the final dot.
    Eod,
    /// The answer to RSET.
    Rset,
}

/// Whether and how TLS comes into a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Security {
    /// By STARTTLS, without which nothing is sent.
    StartTls,
    /// It is there already, or none is wanted (loopback).
    Settled,
}

/// The dialogue until a connection can carry mail.
#[derive(Debug)]
pub struct Opening {
    state: State,
    name: String,
    login: Login,
    capabilities: Capabilities,
}

#[derive(Debug)]
enum State {
    Greeting(Security),
    Ehlo(Security),
    StartTls,
    Handshake,
    Auth(ClientExchange),
    Ready,
}

/// What the driver has to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Send it and read the reply.
    Send(Command),
    /// Shake hands, then call [`Opening::secured`]. Bytes read in the clear behind the 220 are an injection.
    Handshake,
    /// Mail may be sent.
    Ready,
}

/// Why a connection did not come to carry mail.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// The smarthost said no.
    #[error("the smarthost refused at {0}: {1}")]
    Reply(Stage, Reply),
    /// STARTTLS is demanded and not offered: a middlebox may have removed it.
    #[error("the smarthost offers no STARTTLS")]
    NoStartTls,
    /// No common mechanism.
    #[error("the smarthost offers no login that this mailbox may use")]
    NoMechanism,
}

impl Stage {
    /// Every stage, in the order in which they come.
    pub const ALL: [Self; 10] = [
        Self::Connect,
        Self::Ehlo,
        Self::StartTls,
        Self::Tls,
        Self::Auth,
        Self::Mail,
        Self::Rcpt,
        Self::Data,
        Self::Eod,
        Self::Rset,
    ];

    /// The stage of a name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|stage| stage.as_str() == name)
    }

    /// The name in logs, metrics and rules.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Ehlo => "ehlo",
            Self::StartTls => "starttls",
            Self::Tls => "tls",
            Self::Auth => "auth",
            Self::Mail => "mail",
            Self::Rcpt => "rcpt",
            Self::Data => "data",
            Self::Eod => "eod",
            Self::Rset => "rset",
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Opening {
    /// A connection of which nothing has been read yet; `name` is ours.
    pub fn new(name: &str, security: Security, login: Login) -> Self {
        Self {
            state: State::Greeting(security),
            name: name.to_owned(),
            login,
            capabilities: Capabilities::default(),
        }
    }

    /// The stage that the next reply belongs to.
    pub fn stage(&self) -> Stage {
        match self.state {
            State::Greeting(_) => Stage::Connect,
            State::Ehlo(_) => Stage::Ehlo,
            State::StartTls => Stage::StartTls,
            State::Handshake => Stage::Tls,
            State::Auth(_) | State::Ready => Stage::Auth,
        }
    }

    /// Takes a reply.
    pub fn reply(&mut self, reply: &Reply) -> Result<Next, Refusal> {
        let stage = self.stage();
        let refused = || Err(Refusal::Reply(stage, reply.clone()));
        match (&mut self.state, reply.code.get()) {
            (State::Greeting(security), 220) => {
                self.state = State::Ehlo(*security);
                Ok(self.ehlo())
            }
            (State::Ehlo(security), 250) => {
                let security = *security;
                self.capabilities = Capabilities::parse(reply);
                match security {
                    Security::StartTls if self.capabilities.starttls => {
                        self.state = State::StartTls;
                        Ok(Next::Send(Command::StartTls))
                    }
                    Security::StartTls => Err(Refusal::NoStartTls),
                    Security::Settled => self.log_in(),
                }
            }
            (State::StartTls, 220) => {
                self.state = State::Handshake;
                Ok(Next::Handshake)
            }
            (State::Auth(exchange), 334) => {
                exchange.respond().map_or_else(refused, |response| Ok(Next::Send(response)))
            }
            (State::Auth(_), 235) => {
                self.state = State::Ready;
                Ok(Next::Ready)
            }
            _ => refused(),
        }
    }

    /// The handshake after STARTTLS is done: all that was said before is forgotten (RFC 3207 section 4.2).
    pub fn secured(&mut self) -> Next {
        self.capabilities = Capabilities::default();
        self.state = State::Ehlo(Security::Settled);
        self.ehlo()
    }

    /// What the smarthost offered in its last EHLO.
    pub fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn ehlo(&self) -> Next {
        Next::Send(Command::Ehlo(self.name.clone()))
    }

    fn log_in(&mut self) -> Result<Next, Refusal> {
        if matches!(self.login, Login::None) {
            self.state = State::Ready;
            return Ok(Next::Ready);
        }
        let exchange = self.login.exchange(&self.capabilities).ok_or(Refusal::NoMechanism)?;
        let start = exchange.start();
        self.state = State::Auth(exchange);
        Ok(Next::Send(start))
    }
}

/// The MAIL command for an envelope. `added` octets come on top of the size that the device declared.
///
/// SMTPUTF8 and BODY=8BITMIME are asked for only when needed: Exchange Online offers both and now and then
/// refuses them. `None` for a sender outside ASCII where SMTPUTF8 is not offered (RFC 6531 section 3.2).
pub fn mail_command(
    envelope: &Envelope,
    recipient_is_ascii: bool,
    offered: &Capabilities,
    added: u64,
) -> Option<Command> {
    let sender_is_ascii = envelope.reverse_path.is_ascii();
    if !sender_is_ascii && !offered.smtputf8 {
        return None;
    }
    let params = MailParams {
        size: envelope
            .params
            .size
            .filter(|_| offered.size.is_some())
            .map(|size| size.saturating_add(added)),
        eight_bit: envelope.params.eight_bit && offered.eight_bit_mime,
        smtputf8: offered.smtputf8 && !(sender_is_ascii && recipient_is_ascii),
    };
    Some(Command::Mail(envelope.reverse_path.clone(), params))
}

/// The RCPT command behind a MAIL that said SMTPUTF8 or did not; `None` for a recipient outside ASCII where
/// it did not (RFC 6531 section 3.4).
pub fn rcpt_command(recipient: &ForwardPath, smtputf8: bool) -> Option<Command> {
    (smtputf8 || recipient.is_ascii()).then(|| Command::Rcpt(recipient.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::sasl::Credentials;

    fn reply(code: u16, lines: &[&str]) -> Reply {
        let mut reply = Reply::new(code, None, lines[0]);
        reply.lines = lines.iter().map(|line| (*line).to_owned()).collect();
        reply
    }

    fn opening(security: Security) -> Opening {
        let credentials = Credentials { user: "u".into(), secret: "p".into() };
        Opening::new(
            "relay.example",
            security,
            Login::Password { credentials, prefer_plain: false },
        )
    }

    #[test]
    fn from_the_greeting_to_a_login_over_starttls() {
        let mut opening = opening(Security::StartTls);
        let ehlo = Next::Send(Command::Ehlo("relay.example".into()));
        assert_eq!(opening.reply(&reply(220, &["hi"])).as_ref(), Ok(&ehlo));
        assert_eq!(
            opening.reply(&reply(250, &["h", "STARTTLS"])),
            Ok(Next::Send(Command::StartTls))
        );
        assert_eq!(opening.reply(&reply(220, &["go"])), Ok(Next::Handshake));
        assert_eq!(opening.secured(), ehlo);
        assert!(!opening.capabilities().starttls, "what was said in the clear is forgotten");
        assert_eq!(
            opening.reply(&reply(250, &["h", "AUTH LOGIN", "PIPELINING"])),
            Ok(Next::Send(Command::Auth("LOGIN".into(), None)))
        );
        assert_eq!(
            opening.reply(&reply(334, &["x"])),
            Ok(Next::Send(Command::AuthResponse("dQ==".into())))
        );
        assert_eq!(
            opening.reply(&reply(334, &["x"])),
            Ok(Next::Send(Command::AuthResponse("cA==".into())))
        );
        assert_eq!(opening.reply(&reply(235, &["ok"])), Ok(Next::Ready));
        assert!(opening.capabilities().pipelining);
    }

    #[test]
    fn nothing_but_the_expected_code_leads_on() {
        for (codes, stage) in [
            (&[554][..], Stage::Connect),
            (&[220, 421], Stage::Ehlo),
            (&[220, 250, 454], Stage::StartTls),
        ] {
            let mut opening = opening(Security::StartTls);
            let last = codes
                .iter()
                .map(|code| opening.reply(&reply(*code, &["x", "STARTTLS"])))
                .last()
                .unwrap();
            assert!(matches!(last, Err(Refusal::Reply(at, _)) if at == stage), "{last:?}");
        }
        let mut opening = opening(Security::Settled);
        for code in [220, 250] {
            opening.reply(&reply(code, &["x", "AUTH LOGIN"])).unwrap();
        }
        let refused = opening.reply(&reply(535, &["no"]));
        assert!(matches!(refused, Err(Refusal::Reply(Stage::Auth, _))), "{refused:?}");
    }

    #[test]
    fn starttls_taken_away_and_no_common_mechanism_have_names() {
        let mut stripped = opening(Security::StartTls);
        stripped.reply(&reply(220, &["hi"])).unwrap();
        assert_eq!(stripped.reply(&reply(250, &["h", "PIPELINING"])), Err(Refusal::NoStartTls));
        let mut mute = opening(Security::Settled);
        mute.reply(&reply(220, &["hi"])).unwrap();
        assert_eq!(mute.reply(&reply(250, &["h", "AUTH GSSAPI"])), Err(Refusal::NoMechanism));
    }

    #[test]
    fn mail_carries_only_what_is_needed_and_offered() {
        use crate::proto::path::{Address, ReversePath};
        let envelope = |from: &str, params| Envelope {
            reverse_path: ReversePath::Address(Address::parse(from).unwrap()),
            params,
            recipients: vec![],
        };
        let all = Capabilities {
            size: Some(1),
            eight_bit_mime: true,
            smtputf8: true,
            ..Default::default()
        };
        let params = MailParams { size: Some(10), eight_bit: true, smtputf8: true };
        let shown = |envelope: &Envelope, ascii, offered: &Capabilities| {
            format!("{:?}", mail_command(envelope, ascii, offered, 5).unwrap())
        };
        assert_eq!(
            shown(&envelope("a@b", params), true, &all),
            "MAIL FROM:<a@b> SIZE=15 BODY=8BITMIME"
        );
        assert_eq!(
            shown(&envelope("a@b", params), true, &Capabilities::default()),
            "MAIL FROM:<a@b>"
        );
        assert_eq!(shown(&envelope("a@b", MailParams::default()), true, &all), "MAIL FROM:<a@b>");
        assert_eq!(
            shown(&envelope("ä@b", MailParams::default()), true, &all),
            "MAIL FROM:<ä@b> SMTPUTF8"
        );
        assert_eq!(
            shown(&envelope("a@b", MailParams::default()), false, &all),
            "MAIL FROM:<a@b> SMTPUTF8"
        );
        let none = Capabilities::default();
        assert_eq!(shown(&envelope("a@b", params), false, &none), "MAIL FROM:<a@b>");
        assert_eq!(mail_command(&envelope("ä@b", params), true, &none, 5), None);
        let recipient = |text| ForwardPath::Address(Address::parse(text).unwrap());
        assert!(rcpt_command(&recipient("a@b"), false).is_some());
        assert!(rcpt_command(&recipient("ä@b"), true).is_some());
        assert_eq!(rcpt_command(&recipient("ä@b"), false), None);
    }
}
