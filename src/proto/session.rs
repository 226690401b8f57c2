//! A device's session: what each line means in the state that the session is in.
//!
//! ```text
//!              EHLO, HELO           MAIL accepted                    DATA done, RSET, EHLO
//! Connected ──────────────► Ready ────────────────► Transaction ──────────────────────────► Ready
//!     ▲                      │ ▲                      │     ▲
//!     │ STARTTLS, secured()  │ │ verdict              └─────┘ RCPT accepted
//!     └──────────────────────┘ └── Login ◄── AUTH
//! ```
//!
//! The session decides what is well formed and in order; whether a login, a sender or a recipient is
//! taken is the driver's to judge, who then tells the session.

use super::{
    command::{Command, CommandFault},
    envelope::Envelope,
    limits,
    param::MailParams,
    path::{ForwardPath, PathFault, ReversePath},
    reply::{Enhanced, Reply},
    sasl::{Credentials, Mechanism, ServerExchange, ServerStep},
};

/// Whether something is offered and whether a device has to use it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offer {
    /// Not offered.
    No,
    /// Offered.
    Yes,
    /// Nothing else goes before it.
    Required,
}

/// What a listener lets its devices do.
#[derive(Clone, Debug)]
pub struct Features {
    /// Our name.
    pub hostname: String,
    /// Largest message in octets.
    pub message_size: u64,
    /// Most recipients of a transaction.
    pub recipients: usize,
    /// STARTTLS.
    pub starttls: Offer,
    /// AUTH.
    pub auth: Offer,
    /// Whether AUTH is offered in plaintext too.
    pub auth_without_tls: bool,
    /// Whether MAIL may name a sender that is no address, since another one is used.
    pub any_sender: bool,
    /// EHLO keywords that are not shown.
    pub hide: Vec<String>,
}

/// What is known of the smarthost and limits what may be offered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SmarthostOffer {
    /// Its SIZE limit in octets.
    pub size: Option<u64>,
    /// Whether it takes addresses outside ASCII.
    pub smtputf8: bool,
}

/// One device's session.
#[derive(Debug)]
pub struct Session {
    features: Features,
    smarthost: SmarthostOffer,
    state: State,
    tls: bool,
    user: Option<String>,
    faults: u32,
    /// Recipients that were named in this transaction, taken or not.
    named: usize,
}

#[derive(Debug)]
enum State {
    Connected,
    Ready(Hello),
    Login(Hello, ServerExchange),
    Transaction(Hello, Envelope),
}

/// How a device introduced itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hello {
    /// The name that it gave, in visible ASCII, perhaps empty.
    pub name: String,
    /// Whether by EHLO.
    pub extended: bool,
}

/// What to do about a line.
#[derive(Debug)]
pub enum Step {
    /// Send the reply.
    Reply(Reply),
    /// Send the reply and close.
    Close(Reply),
    /// Send the reply, shake hands, call [`Session::secured`].
    StartTls(Reply),
    /// Judge the login, call [`Session::login`].
    Login(Credentials),
    /// Judge the sender; if it is taken call [`Session::mail_accepted`].
    Mail(ReversePath, MailParams),
    /// Judge the recipient; if it is taken call [`Session::rcpt_accepted`].
    Rcpt(ForwardPath),
    /// DATA is refused: send the reply, and never read what may follow it as commands.
    DataRefused(Reply),
    /// Take mail data if they can be sent on; afterwards call [`Session::data_done`].
    Data,
}

impl Session {
    /// A session whose device has not said anything; `tls` if the connection began with a handshake.
    pub fn new(features: Features, tls: bool) -> Self {
        Self {
            features,
            smarthost: SmarthostOffer::default(),
            state: State::Connected,
            tls,
            user: None,
            faults: 0,
            named: 0,
        }
    }

    /// The greeting.
    pub fn greeting(&self) -> Reply {
        Reply::new(220, None, format!("{} ESMTP smtp-uplift", self.features.hostname))
    }

    /// Says what the smarthost was last known to take.
    pub fn set_smarthost(&mut self, offer: SmarthostOffer) {
        self.smarthost = offer;
    }

    /// How the device introduced itself, if it did.
    pub fn hello(&self) -> Option<&Hello> {
        match &self.state {
            State::Connected => None,
            State::Ready(hello) | State::Login(hello, _) | State::Transaction(hello, _) => {
                Some(hello)
            }
        }
    }

    /// The open transaction.
    pub fn envelope(&self) -> Option<&Envelope> {
        match &self.state {
            State::Transaction(_, envelope) => Some(envelope),
            _ => None,
        }
    }

    /// Who logged in.
    pub fn user(&self) -> Option<&str> {
        self.user.as_deref()
    }

    /// The largest message that is taken, in octets.
    pub fn message_size(&self) -> u64 {
        self.features.message_size.min(self.smarthost.size.unwrap_or(u64::MAX))
    }

    /// Takes a line without its line end.
    pub fn line(&mut self, line: &[u8]) -> Step {
        match std::mem::replace(&mut self.state, State::Connected) {
            State::Login(hello, exchange) => {
                self.state = State::Ready(hello);
                self.exchange(exchange.respond(line))
            }
            state => {
                self.state = state;
                let read = match self.features.any_sender {
                    true => Command::parse_any_sender(line),
                    false => Command::parse(line),
                };
                let step = match read {
                    Ok(command) => self.command(command),
                    Err(fault) => self.fault(fault),
                };
                match step {
                    Step::Reply(reply) if asks_for_data(line) => Step::DataRefused(reply),
                    step => step,
                }
            }
        }
    }

    /// Takes note of a line that was longer than any may be.
    pub fn line_too_long(&mut self) -> Step {
        if let State::Login(hello, _) = &self.state {
            self.state = State::Ready(hello.clone());
        }
        self.fault(CommandFault::TooLong)
    }

    /// Whether the next line is an answer to a challenge, which nobody else may read.
    pub fn awaits_secret(&self) -> bool {
        matches!(self.state, State::Login(..))
    }

    /// TLS is there: everything that was said before is forgotten (RFC 3207 section 4.2).
    pub fn secured(&mut self) {
        self.state = State::Connected;
        self.user = None;
        self.tls = true;
    }

    /// The verdict on a login.
    pub fn login(&mut self, credentials: Credentials, accepted: bool) -> Step {
        if accepted {
            self.user = Some(credentials.user);
            return Step::Reply(Reply::new(235, Enhanced(2, 7, 0), "authentication successful"));
        }
        self.count(Reply::new(
            535,
            Enhanced(5, 7, 8),
            "authentication failed: user name or password is wrong",
        ))
    }

    /// A login is not judged just now.
    pub fn login_later(&mut self) -> Step {
        self.count(Reply::new(
            454,
            Enhanced(4, 7, 0),
            "too many logins from this address have failed; try again in a minute",
        ))
    }

    /// The sender is taken: the transaction is open.
    pub fn mail_accepted(&mut self, reverse_path: ReversePath, params: MailParams) -> Reply {
        self.named = 0;
        if let State::Ready(hello) = &self.state {
            let envelope = Envelope { reverse_path, params, recipients: Vec::new() };
            self.state = State::Transaction(hello.clone(), envelope);
        }
        Reply::new(250, Enhanced(2, 1, 0), "sender ok")
    }

    /// The recipient is taken.
    pub fn rcpt_accepted(&mut self, recipient: ForwardPath) {
        if let State::Transaction(_, envelope) = &mut self.state {
            envelope.recipients.push(recipient);
        }
    }

    /// The mail data are over, whatever became of them.
    pub fn data_done(&mut self) {
        self.reset();
    }

    fn command(&mut self, command: Command) -> Step {
        let allowed_without_tls = matches!(
            command,
            Command::Ehlo(_) | Command::Helo(_) | Command::StartTls | Command::Noop | Command::Quit
        );
        if self.features.starttls == Offer::Required && !self.tls && !allowed_without_tls {
            return self.count(Reply::new(
                530,
                Enhanced(5, 7, 0),
                "must issue a STARTTLS command first",
            ));
        }
        match command {
            Command::Ehlo(name) => self.ehlo(name),
            Command::Helo(name) => self.helo(name),
            Command::StartTls => self.starttls(),
            Command::Auth(mechanism, initial) => self.auth(&mechanism, initial.as_deref()),
            Command::Mail(path, params) => self.mail(path, params),
            Command::Rcpt(path) => self.rcpt(path),
            Command::Data => self.data(),
            Command::Rset => {
                self.reset();
                Step::Reply(Reply::new(250, Enhanced(2, 0, 0), "ok"))
            }
            Command::Noop => Step::Reply(Reply::new(250, Enhanced(2, 0, 0), "ok")),
            Command::Help => Step::Reply(Reply::new(
                214,
                Enhanced(2, 0, 0),
                "a relay for devices: EHLO, MAIL, RCPT, DATA, QUIT",
            )),
            Command::Vrfy => {
                Step::Reply(Reply::new(252, Enhanced(2, 1, 5), "cannot verify; send mail and see"))
            }
            Command::Expn => {
                self.count(Reply::new(502, Enhanced(5, 5, 1), "command not implemented"))
            }
            Command::Quit => Step::Close(Reply::new(221, Enhanced(2, 0, 0), "closing, good bye")),
            Command::AuthResponse(_) => self.fault(CommandFault::Unknown),
        }
    }

    fn ehlo(&mut self, name: String) -> Step {
        self.state = State::Ready(Hello { name, extended: true });
        let mut lines = vec![format!("{} greets you", self.features.hostname)];
        let auth_now = self.features.auth != Offer::No
            && self.user.is_none()
            && (self.tls || self.features.auth_without_tls);
        let offers = [
            (true, format!("SIZE {}", self.message_size())),
            (true, "PIPELINING".to_owned()),
            (true, "8BITMIME".to_owned()),
            (true, "ENHANCEDSTATUSCODES".to_owned()),
            (self.smarthost.smtputf8, "SMTPUTF8".to_owned()),
            (self.features.starttls != Offer::No && !self.tls, "STARTTLS".to_owned()),
            (auth_now, "AUTH LOGIN PLAIN".to_owned()),
        ];
        lines.extend(
            offers
                .into_iter()
                .filter(|(offered, line)| *offered && !self.hides(line))
                .map(|(_, line)| line),
        );
        let mut reply = Reply::new(250, None, "");
        reply.lines = lines;
        Step::Reply(reply)
    }

    fn hides(&self, line: &str) -> bool {
        let keyword = line.split(' ').next().unwrap_or(line);
        self.features.hide.iter().any(|hidden| hidden == keyword)
    }

    fn helo(&mut self, name: String) -> Step {
        self.state = State::Ready(Hello { name, extended: false });
        Step::Reply(Reply::new(250, None, self.features.hostname.clone()))
    }

    fn starttls(&mut self) -> Step {
        if self.tls {
            return self.count(out_of_order("TLS is active already"));
        }
        if self.features.starttls == Offer::No {
            return self.count(Reply::new(502, Enhanced(5, 5, 1), "STARTTLS is not offered here"));
        }
        Step::StartTls(Reply::new(220, Enhanced(2, 0, 0), "ready to start TLS"))
    }

    fn auth(&mut self, mechanism: &str, initial: Option<&str>) -> Step {
        let ready = matches!(self.state, State::Ready(_)) && self.user.is_none();
        if self.features.auth == Offer::No {
            return self.count(Reply::new(
                502,
                Enhanced(5, 5, 1),
                "AUTH is not offered here: send without a login",
            ));
        }
        if !ready {
            return self.count(out_of_order("AUTH goes once, after EHLO and before MAIL"));
        }
        if !self.tls && !self.features.auth_without_tls {
            return self.count(Reply::new(
                538,
                Enhanced(5, 7, 11),
                "encryption is required for a login: use TLS",
            ));
        }
        match Mechanism::parse(mechanism) {
            Some(mechanism) => self.exchange(ServerExchange::start(mechanism, initial)),
            None => {
                self.count(Reply::new(504, Enhanced(5, 5, 4), "unrecognised authentication type"))
            }
        }
    }

    fn exchange(&mut self, step: ServerStep) -> Step {
        match step {
            ServerStep::Challenge(exchange, reply) => {
                if let State::Ready(hello) = &self.state {
                    self.state = State::Login(hello.clone(), exchange);
                }
                Step::Reply(reply)
            }
            ServerStep::Judge(credentials) => Step::Login(credentials),
            ServerStep::Failed(reply) => self.count(reply),
        }
    }

    fn mail(&mut self, path: ReversePath, params: MailParams) -> Step {
        match self.state {
            State::Ready(_) => {}
            State::Transaction(..) => {
                return self.count(out_of_order("a transaction is open already"));
            }
            State::Connected | State::Login(..) => {
                return self.count(out_of_order("say EHLO first"));
            }
        }
        if self.features.auth == Offer::Required && self.user.is_none() {
            return self.count(Reply::new(530, Enhanced(5, 7, 0), "authentication required"));
        }
        if params.size.is_some_and(|size| size > self.message_size()) {
            return Step::Reply(too_large(self.message_size()));
        }
        Step::Mail(path, params)
    }

    fn rcpt(&mut self, path: ForwardPath) -> Step {
        if !matches!(self.state, State::Transaction(..)) {
            return self.count(out_of_order("say MAIL first"));
        }
        // Refused ones count too: nobody tries a directory through us.
        if self.named >= self.features.recipients {
            return Step::Reply(Reply::new(
                452,
                Enhanced(4, 5, 3),
                "too many recipients: send the rest in another message",
            ));
        }
        self.named += 1;
        Step::Rcpt(path)
    }

    fn data(&mut self) -> Step {
        match &self.state {
            State::Transaction(_, envelope) if !envelope.recipients.is_empty() => Step::Data,
            State::Transaction(..) => self.count(out_of_order("no recipient was accepted")),
            _ => self.count(out_of_order("say MAIL and RCPT first")),
        }
    }

    fn reset(&mut self) {
        if let State::Transaction(hello, _) = &self.state {
            self.state = State::Ready(hello.clone());
        }
    }

    fn fault(&mut self, fault: CommandFault) -> Step {
        let text = fault.to_string();
        self.count(match fault {
            CommandFault::Unknown => Reply::new(500, Enhanced(5, 5, 1), text),
            CommandFault::TooLong => Reply::new(500, Enhanced(5, 5, 6), text),
            CommandFault::Argument(_) => Reply::new(501, Enhanced(5, 5, 4), text),
            CommandFault::Path(
                PathFault::TooLong
                | PathFault::NoDomain
                | PathFault::Characters
                | PathFault::Missing,
            ) => Reply::new(501, Enhanced(5, 1, 3), text),
        })
    }

    /// Sends a refusal that is the device's own fault; too many of them end the session.
    fn count(&mut self, reply: Reply) -> Step {
        self.faults += 1;
        if self.faults < limits::FAULTS {
            return Step::Reply(reply);
        }
        Step::Close(Reply::new(421, Enhanced(4, 7, 0), "too many errors, closing"))
    }
}

/// The refusal of a message that is larger than `limit` octets.
pub fn too_large(limit: u64) -> Reply {
    Reply::new(
        552,
        Enhanced(5, 3, 4),
        format!("message too large: at most {limit} octets are taken"),
    )
}

/// Whether the verb is DATA, with whatever argument.
fn asks_for_data(line: &[u8]) -> bool {
    let word = line.trim_ascii_start();
    word.get(..4).is_some_and(|verb| verb.eq_ignore_ascii_case(b"DATA"))
        && word.get(4).is_none_or(|next| next.is_ascii_whitespace())
}

fn out_of_order(text: &str) -> Reply {
    Reply::new(503, Enhanced(5, 5, 1), text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn features() -> Features {
        Features {
            hostname: "relay.example".into(),
            message_size: 1_000,
            recipients: 2,
            starttls: Offer::Yes,
            auth: Offer::No,
            auth_without_tls: false,
            any_sender: false,
            hide: vec![],
        }
    }

    /// Says a line and returns what the device would read; the driver takes everything.
    fn say(session: &mut Session, line: &str) -> String {
        match session.line(line.as_bytes()) {
            Step::Reply(reply) | Step::DataRefused(reply) => reply.to_string(),
            Step::Close(reply) => format!("{reply} (closed)"),
            Step::StartTls(reply) => {
                session.secured();
                reply.to_string()
            }
            Step::Login(credentials) => {
                let accepted = credentials.secret == "right";
                match session.login(credentials, accepted) {
                    Step::Reply(reply) => reply.to_string(),
                    other => format!("{other:?}"),
                }
            }
            Step::Mail(path, params) => session.mail_accepted(path, params).to_string(),
            Step::Rcpt(path) => {
                session.rcpt_accepted(path);
                "taken".into()
            }
            Step::Data => {
                session.data_done();
                "data".into()
            }
        }
    }

    fn dialogue(features: Features, tls: bool, lines: &[(&str, &str)]) {
        let mut session = Session::new(features, tls);
        for (line, answer) in lines {
            let said = say(&mut session, line);
            assert!(said.starts_with(answer), "{line}: {said}, not {answer}");
        }
    }

    #[test]
    fn a_message_in_order() {
        dialogue(
            features(),
            false,
            &[
                (
                    "EHLO copier",
                    "250 relay.example greets you SIZE 1000 PIPELINING 8BITMIME ENHANCEDSTATUSCODES STARTTLS",
                ),
                ("MAIL FROM:<a@b>", "250 2.1.0"),
                ("RCPT TO:<c@d>", "taken"),
                ("DATA", "data"),
                ("MAIL FROM:<a@b>", "250 2.1.0"),
                ("RSET", "250"),
                ("MAIL FROM:<>", "250 2.1.0"),
                ("EHLO again", "250"),
                ("RCPT TO:<c@d>", "503 5.5.1"),
                ("QUIT", "221 2.0.0 closing, good bye (closed)"),
            ],
        );
    }

    #[test]
    fn wrong_order_is_503() {
        dialogue(
            features(),
            false,
            &[
                ("MAIL FROM:<a@b>", "503 5.5.1 say EHLO first"),
                ("HELO x", "250 relay.example"),
                ("RCPT TO:<a@b>", "503 5.5.1"),
                ("DATA", "503 5.5.1"),
                ("MAIL FROM:<a@b>", "250"),
                ("MAIL FROM:<a@b>", "503 5.5.1 a transaction is open"),
                ("DATA", "503 5.5.1 no recipient"),
            ],
        );
    }

    #[test]
    fn limits_are_told_apart() {
        dialogue(
            features(),
            false,
            &[
                ("EHLO x", "250"),
                ("MAIL FROM:<a@b> SIZE=1001", "552 5.3.4"),
                ("MAIL FROM:<a@b> SIZE=1000", "250"),
                ("RCPT TO:<a@b>", "taken"),
                ("RCPT TO:<b@b>", "taken"),
                ("RCPT TO:<c@b>", "452 4.5.3"),
                ("DATA", "data"),
            ],
        );
        let mut session = Session::new(features(), false);
        session.set_smarthost(SmarthostOffer { size: Some(10), smtputf8: true });
        assert!(
            say(&mut session, "EHLO x")
                .contains("SIZE 10 PIPELINING 8BITMIME ENHANCEDSTATUSCODES SMTPUTF8")
        );
        assert!(say(&mut session, "MAIL FROM:<a@b> SIZE=11").starts_with("552"));
    }

    #[test]
    fn tls_forgets_what_was_said_before() {
        dialogue(
            features(),
            false,
            &[
                ("EHLO x", "250"),
                ("MAIL FROM:<a@b>", "250"),
                ("STARTTLS", "220 2.0.0"),
                ("RCPT TO:<c@d>", "503"),
                ("MAIL FROM:<a@b>", "503 5.5.1 say EHLO first"),
                (
                    "EHLO x",
                    "250 relay.example greets you SIZE 1000 PIPELINING 8BITMIME ENHANCEDSTATUSCODES",
                ),
                ("STARTTLS", "503"),
            ],
        );
        let required = Features { starttls: Offer::Required, ..features() };
        dialogue(
            required,
            false,
            &[
                ("EHLO x", "250"),
                ("MAIL FROM:<a@b>", "530 5.7.0 must issue a STARTTLS"),
                ("RSET", "530 5.7.0"),
                ("NOOP", "250"),
                ("STARTTLS", "220"),
                ("EHLO x", "250"),
                ("MAIL FROM:<a@b>", "250"),
            ],
        );
        dialogue(
            Features { starttls: Offer::No, ..features() },
            false,
            &[("STARTTLS", "502 5.5.1")],
        );
    }

    #[test]
    fn logins() {
        let auth = Features { auth: Offer::Required, ..features() };
        dialogue(
            auth.clone(),
            false,
            &[
                (
                    "EHLO x",
                    "250 relay.example greets you SIZE 1000 PIPELINING 8BITMIME ENHANCEDSTATUSCODES STARTTLS",
                ),
                ("AUTH LOGIN", "538 5.7.11"),
            ],
        );
        dialogue(
            auth,
            true,
            &[
                ("AUTH LOGIN", "503"),
                (
                    "EHLO x",
                    "250 relay.example greets you SIZE 1000 PIPELINING 8BITMIME ENHANCEDSTATUSCODES AUTH LOGIN PLAIN",
                ),
                ("MAIL FROM:<a@b>", "530 5.7.0 authentication required"),
                ("AUTH CRAM-MD5", "504"),
                ("auth login", "334 VXNlcm5hbWU6"),
                ("*", "501 5.7.0"),
                ("AUTH LOGIN", "334 VXNlcm5hbWU6"),
                ("c2Nhbg==", "334 UGFzc3dvcmQ6"),
                ("d3Jvbmc=", "535 5.7.8"),
                ("AUTH PLAIN", "334 "),
                ("AHNjYW4AcmlnaHQ=", "235 2.7.0"),
                ("AUTH PLAIN AHNjYW4AcmlnaHQ=", "503"),
                ("MAIL FROM:<a@b>", "250"),
            ],
        );
        dialogue(features(), true, &[("EHLO x", "250"), ("AUTH LOGIN", "502")]);
    }

    #[test]
    fn hidden_keywords_are_not_shown() {
        let hide = vec!["PIPELINING".to_owned(), "SIZE".to_owned(), "STARTTLS".to_owned()];
        dialogue(
            Features { hide, ..features() },
            false,
            &[("EHLO x", "250 relay.example greets you 8BITMIME ENHANCEDSTATUSCODES")],
        );
    }

    #[test]
    fn errors_end_a_session_some_day() {
        let mut session = Session::new(features(), false);
        let answers: Vec<String> = (0..20).map(|_| say(&mut session, "GARBAGE")).collect();
        assert!(answers[..19].iter().all(|answer| answer.starts_with("500 5.5.1")));
        assert_eq!(answers[19], "421 4.7.0 too many errors, closing (closed)");
        assert!(
            matches!(Session::new(features(), false).line_too_long(), Step::Reply(reply) if reply.code.get() == 500)
        );
    }
}
