//! The way to the smarthost walked step by step, as production walks it, for an operator who wants to know
//! where it ends. Each step has a deadline; what is wrong is told with its remedy.

mod access;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use serde::Serialize;

use super::{
    LoginError, Target,
    classify::Verdict,
    connection::{Connection, Lost, LostCause, OpenError},
    journal::Journal,
    token::Application,
};
use crate::{
    config::{MailboxAuth, SmarthostTls},
    proto::{
        client::{Refusal, Stage},
        command::Command,
        reply::Reply,
        sasl::{Login, Mechanism},
    },
    telemetry::{metrics::Metrics, transcript::Transcript},
    transport::{
        certificate,
        dial::{self, DialError},
        stream::BoxIo,
    },
};

/// How long an address may take to answer.
const CONNECT: Duration = Duration::from_secs(5);
/// How long one reply may take: Exchange Online delays its answer to a bad login.
const REPLY: Duration = Duration::from_secs(20);
/// The rule of a mailbox that sends as much as it may.
const TOO_FAST: &str = "message-rate";
/// The rule that knows Exchange Online's answer to a token that it does not take.
const TOKEN_REFUSED: &str = "login-refused";
/// How long the verdict on a test message may take.
const VERDICT: Duration = Duration::from_secs(60);

/// What was found at one step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The step.
    pub step: String,
    /// How it went.
    pub outcome: Outcome,
    /// What was seen.
    pub found: String,
    /// The rule of the catalogue that knew the smarthost's reply.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// What to do, one step an item.
    pub remedy: Vec<String>,
}

/// How a step went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// In order.
    Ok,
    /// It works, and somebody should look at it.
    Warning,
    /// It does not work.
    Failed,
}

/// The walk ends here: what comes behind this step cannot be reached.
struct Stop;

struct Walk<'a> {
    target: &'a Target,
    tell: &'a mut (dyn FnMut(Finding) + Send),
    journal: Arc<Journal>,
    /// Whose own the token is.
    application: Option<Application>,
    /// Who has signed in for it.
    owner: Option<String>,
}

/// Walks from the name to MAIL of each sender, and sends a message to `test` if there is one. Tells each
/// finding as soon as there is one; returns whether the end was reached.
pub async fn examine(
    target: &mut Target,
    senders: &[String],
    test: Option<&str>,
    tell: &mut (dyn FnMut(Finding) + Send),
) -> bool {
    target.patience = REPLY;
    let journal = Journal::new(target, Metrics::new(""));
    let mut walk = Walk { target, tell, journal, application: None, owner: None };
    walk.walk(senders, test).await.is_ok()
}

impl Walk<'_> {
    async fn walk(&mut self, senders: &[String], test: Option<&str>) -> Result<(), Stop> {
        self.passwords_end();
        let addresses = self.names().await?;
        let (io, address) = self.tcp(&addresses).await?;
        let first = self.secured(io, address).await?;
        let offered = match self.access().await {
            Ok(()) => self.login_offered(&first).await,
            stop => stop,
        };
        first.close(true).await;
        offered?;
        let mut connection = self.login(address).await?;
        for sender in senders {
            connection = self.usable(connection, address).await?;
            self.mail(&mut connection, sender).await;
        }
        if let (Some(recipient), Some(sender)) = (test, senders.first()) {
            connection = self.usable(connection, address).await?;
            self.send(&mut connection, sender, recipient).await;
        }
        connection.close(true).await;
        Ok(())
    }

    /// Whatever else is found: a mailbox that logs in with a password has a date to keep.
    fn passwords_end(&mut self) {
        if !matches!(self.target.auth(), MailboxAuth::Login { .. } | MailboxAuth::Plain { .. }) {
            return;
        }
        self.warning(
            "basic authentication",
            "the mailbox logs in with a password",
            &[
                "Microsoft switches passwords for SMTP off by default at the end of December 2026 (an administrator \
                 can switch them on again), offers new tenants none after that, and will name the date of their end \
                 in the second half of 2027",
                "Prepare auth = \"xoauth2\" for this mailbox",
            ],
        );
    }

    async fn names(&mut self) -> Result<Vec<SocketAddr>, Stop> {
        let smarthost = &self.target.smarthost;
        match dial::addresses(&smarthost.host, smarthost.port).await {
            Ok(addresses) => {
                let listed: Vec<_> = addresses.iter().map(|a| a.ip().to_string()).collect();
                self.ok("names", format!("{}: {}", smarthost.host, listed.join(", ")));
                Ok(addresses)
            }
            Err(error) => Err(self.failed(
                "names",
                error,
                &["Check host in [smarthost], and that this machine's DNS server answers: getent hosts NAME"],
            )),
        }
    }

    async fn tcp(&mut self, addresses: &[SocketAddr]) -> Result<(BoxIo, SocketAddr), Stop> {
        let (mut tried, mut silent) = (Vec::new(), false);
        for address in addresses {
            match dial::connect(*address, CONNECT).await {
                Ok(io) if tried.is_empty() => {
                    self.ok("tcp", format!("{address} takes connections"));
                    return Ok((io, *address));
                }
                Ok(io) => {
                    let found =
                        format!("{address} takes connections, but not {}", tried.join(", nor "));
                    self.warning("tcp", found, &["Have the addresses that do not answer looked at: each new connection tries them first"]);
                    return Ok((io, *address));
                }
                Err(error) => {
                    silent |= error.kind() == std::io::ErrorKind::TimedOut;
                    tried.push(format!("{address} ({error})"));
                }
            }
        }
        let port = self.target.smarthost.port;
        let remedy = if silent {
            format!(
                "Nothing answers, not even with a refusal: a firewall drops it. Allow this machine TCP port {port} outwards; \
                 many providers block port 25"
            )
        } else {
            format!(
                "Refused: nothing listens there, or a firewall rejects it. Check host and port {port} in [smarthost]"
            )
        };
        Err(self.failed("tcp", format!("no connection: {}", tried.join(", ")), &[remedy.as_str()]))
    }

    /// Greeting, EHLO, STARTTLS, handshake, certificate, EHLO again.
    async fn secured(&mut self, io: BoxIo, address: SocketAddr) -> Result<Connection, Stop> {
        let connection = self.open(io, address, Login::None).await?;
        let how = match self.target.smarthost.tls {
            SmarthostTls::StartTls => "after STARTTLS",
            SmarthostTls::Implicit => "from the first octet",
            SmarthostTls::None => "none, since this is a loopback address",
        };
        let tls = connection.tls().map(|tls| format!("{tls} ")).unwrap_or_default();
        self.ok("tls", format!("{tls}{how}"));
        if let Some(shown) = connection.shown() {
            let now = jiff::Timestamp::now().as_second();
            let left = certificate::days_left(shown.not_after, now);
            let found = format!("{shown}, good for {left} more days");
            if left < certificate::RENEW {
                let step = "It is the server's to renew; if it is not Microsoft's, ask whoever runs the server";
                self.warning("certificate", found, &[step]);
            } else {
                self.ok("certificate", found);
            }
        }
        let offered = connection.capabilities();
        let mechanisms: Vec<_> = offered.mechanisms.iter().map(|m| m.as_str()).collect();
        let mut list = Vec::from([format!("AUTH {}", mechanisms.join(" "))]);
        list.extend(offered.size.map(|size| format!("SIZE {size}")));
        for (keyword, there) in [
            ("PIPELINING", offered.pipelining),
            ("8BITMIME", offered.eight_bit_mime),
            ("SMTPUTF8", offered.smtputf8),
        ] {
            list.extend(there.then(|| keyword.to_owned()));
        }
        self.ok("ehlo", format!("offers {}", list.join(", ")));
        Ok(connection)
    }

    async fn login_offered(&mut self, connection: &Connection) -> Result<(), Stop> {
        let login = self.secret().await?;
        if !matches!(login, Login::None) && login.exchange(connection.capabilities()).is_none() {
            let tokens = connection.capabilities().mechanisms.contains(&Mechanism::XOAuth2);
            if tokens && matches!(login, Login::Password { .. }) {
                return Err(self.failed(
                    "auth",
                    "the server takes tokens only (AUTH XOAUTH2), and the mailbox has a password",
                    &["Write auth = \"xoauth2\" for the mailbox, with a token in [mailbox.oauth]"],
                ));
            }
            return Err(self.failed("auth", Refusal::NoMechanism, &[
                "Exchange Online offers AUTH LOGIN XOAUTH2 after TLS: if it is missing, host is not \
                 smtp.office365.com but an MX name, or something on the way has changed the dialogue",
                "A connector on port 25 takes mail without a login: write auth = \"none\" for it",
            ]));
        }
        Ok(())
    }

    async fn login(&mut self, address: SocketAddr) -> Result<Connection, Stop> {
        let login = self.secret().await?;
        let io = match dial::connect(address, CONNECT).await {
            Ok(io) => io,
            Err(error) => {
                let found = format!("{address} takes no second connection: {error}");
                return Err(self.failed(
                    "auth",
                    found,
                    &["Try again; if it stays so, the server limits connections"],
                ));
            }
        };
        let how = match login {
            Login::None => "no login, as auth = \"none\" asks for".to_owned(),
            _ => format!("logged in as {}", self.target.username),
        };
        let connection = self.open(io, address, login).await?;
        self.ok("auth", how);
        Ok(connection)
    }

    /// A connection that the next command can go over.
    async fn usable(&mut self, last: Connection, address: SocketAddr) -> Result<Connection, Stop> {
        if last.is_usable() {
            return Ok(last);
        }
        last.close(true).await;
        self.login(address).await
    }

    async fn secret(&mut self) -> Result<Login, Stop> {
        match self.target.login().await {
            Ok((login, _)) => Ok(login),
            Err(LoginError::Token(error)) => {
                let remedy: Vec<&str> = error.remedy.iter().map(String::as_str).collect();
                Err(self.failed("token request", error.message, &remedy))
            }
            Err(error) => Err(self.failed("auth", OpenError::Login(error), &[
                "Write the secret alone, in one line, into what password or token names, readable for the relay's user",
            ])),
        }
    }

    async fn open(
        &mut self,
        io: BoxIo,
        address: SocketAddr,
        login: Login,
    ) -> Result<Connection, Stop> {
        let transcript = Transcript::default();
        let way = (io, address);
        match Connection::over(way, self.target, login, &self.journal, &transcript).await {
            Ok(connection) => Ok(connection),
            Err(error) => {
                let step = match error.stage() {
                    Stage::Connect => "greeting",
                    Stage::Tls => "tls",
                    stage => stage.as_str(),
                };
                let step = match &error {
                    OpenError::Tls(tls) if tls.about_certificate => "certificate",
                    _ => step,
                };
                Err(self.open_failed(step, &error))
            }
        }
    }

    fn open_failed(&mut self, step: &str, error: &OpenError) -> Stop {
        match error {
            OpenError::Refused(Refusal::Reply(stage, reply)) => {
                self.refused(step, *stage, reply);
                Stop
            }
            OpenError::Refused(Refusal::NoStartTls) => self.failed(step, error, &[
                "Something on the way has taken STARTTLS out of the answer (a firewall with SMTP inspection: \"fixup\", \"ESMTP \
                 inspect\", antivirus): switch that off for this machine. Exchange Online always offers it",
            ]),
            OpenError::Tls(tls) => {
                let remedy: Vec<&str> = tls.remedy.into_iter().collect();
                self.failed(step, &tls.reason, &remedy)
            }
            OpenError::Lost(Lost { cause: LostCause::Garbage(_), .. }) => self.failed(step, error, &[
                "What answers there is no SMTP server: check host and port in [smarthost]",
            ]),
            OpenError::Lost(Lost { cause: LostCause::Timeout(_), stage: Stage::Connect }) => {
                self.failed(step, error, &[
                    "The port is open and says nothing: with tls = \"implicit\" the server would wait for us, so check tls and port \
                     in [smarthost], else a box on the way holds the connection",
                ])
            }
            OpenError::Lost(_) => self.failed(step, error, &[
                "Try again; if it stays so, something on the way ends the connection: a firewall, or the server does not \
                 want this address",
            ]),
            OpenError::Dial(DialError::Name { .. } | DialError::Connect { .. })
            | OpenError::Login(_)
            | OpenError::Refused(Refusal::NoMechanism) => self.failed(step, error, &[]),
        }
    }

    /// MAIL of a sender.
    async fn mail(&mut self, connection: &mut Connection, sender: &str) {
        let step = format!("mail from {sender}");
        let Ok(mail) = Command::parse(format!("MAIL FROM:<{sender}>").as_bytes()) else {
            self.failed(
                &step,
                "this is no address that mail can come from",
                &["Correct address or send_as"],
            );
            return;
        };
        match connection.exchange(&[mail, Command::Rset], true, REPLY).await {
            Ok(replies) => match replies.first() {
                Some(reply) if reply.code.is_positive() => self.ok(&step, reply),
                Some(reply) => self.refused(&step, Stage::Mail, reply),
                None => {}
            },
            Err(lost) => {
                connection.give_up();
                self.failed(&step, lost, &["Try again"]);
            }
        }
    }

    /// One real message: what the smarthost thinks of a sender shows only after the final dot.
    async fn send(&mut self, connection: &mut Connection, sender: &str, recipient: &str) {
        let step = format!("message to {recipient}");
        match self.transfer(connection, sender, recipient).await {
            Ok((Stage::Eod, reply)) if reply.code.get() == 250 => {
                self.ok(&step, format!("taken: {reply}; look whether it has arrived"));
            }
            Ok((stage, reply)) => self.refused(&step, stage, &reply),
            Err(lost) => {
                let next = match lost.stage {
                    Stage::Eod => {
                        "Look whether the message has arrived all the same; if not, try again"
                    }
                    _ => "Try again",
                };
                self.failed(&step, lost, &[next]);
            }
        }
    }

    /// The reply that a message ended with, and where.
    async fn transfer(
        &mut self,
        connection: &mut Connection,
        sender: &str,
        recipient: &str,
    ) -> Result<(Stage, Reply), Lost> {
        for (stage, line) in [
            (Stage::Mail, format!("MAIL FROM:<{sender}>")),
            (Stage::Rcpt, format!("RCPT TO:<{recipient}>")),
            (Stage::Data, "DATA".to_owned()),
        ] {
            let Ok(command) = Command::parse(line.as_bytes()) else {
                return Ok((stage, Reply::new(501, None, format!("{line} is no command"))));
            };
            let replies = connection.exchange(&[command], true, REPLY).await?;
            let reply =
                replies.into_iter().next().unwrap_or_else(|| Reply::new(421, None, "closing"));
            if !matches!(reply.code.get(), 250 | 251 | 354) {
                return Ok((stage, reply));
            }
        }
        let now = jiff::Zoned::now();
        let message = format!(
            "From: <{sender}>\r\nTo: <{recipient}>\r\nSubject: Test of smtp-uplift on {hostname}\r\nDate: {date}\r\n\
             Message-ID: <doctor.{stamp}@{hostname}>\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n\
             This is a test message. If you can read it, the relay on {hostname} can send as {sender}.\r\n",
            hostname = self.target.hostname,
            date = jiff::fmt::rfc2822::to_string(&now).unwrap_or_default(),
            stamp = now.timestamp().as_microsecond(),
        );
        connection.write_data(Bytes::from(message), REPLY).await?;
        Ok((Stage::Eod, connection.end_data(VERDICT).await?))
    }

    fn ok(&mut self, step: &str, found: impl ToString) {
        self.found(step, Outcome::Ok, found, &[]);
    }

    fn warning(&mut self, step: &str, found: impl ToString, remedy: &[&str]) {
        self.found(step, Outcome::Warning, found, remedy);
    }

    fn failed(&mut self, step: &str, found: impl ToString, remedy: &[&str]) -> Stop {
        self.found(step, Outcome::Failed, found, remedy);
        Stop
    }

    /// The smarthost has said no: what that means is in the catalogue.
    fn refused(&mut self, step: &str, stage: Stage, reply: &Reply) {
        let Verdict { rule, meaning, remedy, .. } = self.journal.judge(stage, reply);
        // A relay that is busy with this mailbox uses up what it may send: nothing is wrong with the way.
        let busy = rule.as_str() == TOO_FAST;
        // Exchange Online gives no reason; the token does.
        let known = (rule.as_str() == TOKEN_REFUSED).then(|| self.refused_token()).flatten();
        let (meaning, remedy) = known.unwrap_or_else(|| (meaning.to_string(), remedy.to_vec()));
        (self.tell)(Finding {
            step: step.to_owned(),
            outcome: if busy { Outcome::Warning } else { Outcome::Failed },
            found: format!(
                "the smarthost says {}. {meaning}",
                reply.to_string().trim_end_matches('.')
            ),
            rule: Some(rule.as_str().to_owned()),
            remedy,
        });
    }

    fn found(&mut self, step: &str, outcome: Outcome, found: impl ToString, remedy: &[&str]) {
        (self.tell)(Finding {
            step: step.to_owned(),
            outcome,
            found: found.to_string(),
            rule: None,
            remedy: remedy.iter().map(|step| (*step).to_owned()).collect(),
        });
    }
}
