//! SASL: PLAIN (RFC 4616), LOGIN (draft-murchison-sasl-login) and XOAUTH2 (Google, Microsoft).
//!
//! [`ClientExchange`] logs in to the smarthost, [`ServerExchange`] takes the login of a device.

use std::fmt;

use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};

use super::{
    capabilities::Capabilities,
    command::Command,
    limits,
    reply::{Enhanced, Reply},
};

/// Devices pad or do not.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A SASL mechanism that this relay speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// User name and password, asked for one after the other.
    Login,
    /// User name and password in one response.
    Plain,
    /// An OAuth 2.0 access token.
    XOAuth2,
}

/// How to log in to the smarthost.
#[derive(Clone)]
pub enum Login {
    /// Not at all.
    None,
    /// With a password: LOGIN, or PLAIN if LOGIN is not offered or `prefer_plain`.
    Password {
        /// User name and password.
        credentials: Credentials,
        /// PLAIN first.
        prefer_plain: bool,
    },
    /// With an access token: XOAUTH2; the token stands where the password would.
    Token(Credentials),
}

/// A user name with its secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// Who logs in.
    pub user: String,
    /// Password or token.
    pub secret: String,
}

/// The relay's side of an AUTH exchange with the smarthost.
#[derive(Debug)]
pub struct ClientExchange {
    /// Responses still owed, last first; each answers one 334.
    responses: Vec<Command>,
    start: Command,
    /// The final refusal was asked for.
    asked: bool,
}

/// A device's AUTH exchange, as we see it.
#[derive(Debug)]
pub enum ServerExchange {
    /// `334 VXNlcm5hbWU6` was sent.
    LoginUser,
    /// `334 UGFzc3dvcmQ6` was sent.
    LoginPassword(String),
    /// An empty 334 was sent.
    Plain,
}

/// What to do next in a device's AUTH exchange.
#[derive(Debug)]
pub enum ServerStep {
    /// Send the challenge and go on.
    Challenge(ServerExchange, Reply),
    /// The device has said all: judge it.
    Judge(Credentials),
    /// The exchange has failed: send the reply.
    Failed(Reply),
}

impl Mechanism {
    /// Reads a mechanism's name.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Login, Self::Plain, Self::XOAuth2]
            .into_iter()
            .find(|m| m.as_str().eq_ignore_ascii_case(name))
    }

    /// The name on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Login => "LOGIN",
            Self::Plain => "PLAIN",
            Self::XOAuth2 => "XOAUTH2",
        }
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} [redacted]", self.user)
    }
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "no login",
            Self::Password { .. } => "password",
            Self::Token(_) => "token",
        })
    }
}

impl Login {
    /// The exchange that suits what the server offers; `None` if it offers nothing that we may use.
    pub fn exchange(&self, offered: &Capabilities) -> Option<ClientExchange> {
        let (credentials, order) = match self {
            Self::None => return None,
            Self::Password { credentials, prefer_plain: false } => {
                (credentials, &[Mechanism::Login, Mechanism::Plain][..])
            }
            Self::Password { credentials, prefer_plain: true } => {
                (credentials, &[Mechanism::Plain, Mechanism::Login][..])
            }
            Self::Token(credentials) => (credentials, &[Mechanism::XOAuth2][..]),
        };
        let mechanism = order.iter().find(|mechanism| offered.mechanisms.contains(mechanism))?;
        Some(ClientExchange::new(*mechanism, credentials))
    }
}

impl ClientExchange {
    fn new(mechanism: Mechanism, Credentials { user, secret }: &Credentials) -> Self {
        let name = mechanism.as_str().to_owned();
        let whole = match mechanism {
            Mechanism::Login => {
                let responses =
                    [secret, user].map(|text| Command::AuthResponse(BASE64.encode(text))).to_vec();
                return Self { responses, start: Command::Auth(name, None), asked: false };
            }
            Mechanism::Plain => BASE64.encode(format!("\0{user}\0{secret}")),
            Mechanism::XOAuth2 => {
                BASE64.encode(format!("user={user}\u{1}auth=Bearer {secret}\u{1}\u{1}"))
            }
        };
        if "AUTH  \r\n".len() + name.len() + whole.len() <= limits::INITIAL_RESPONSE_LINE {
            Self { responses: Vec::new(), start: Command::Auth(name, Some(whole)), asked: false }
        } else {
            Self {
                responses: vec![Command::AuthResponse(whole)],
                start: Command::Auth(name, None),
                asked: false,
            }
        }
    }

    /// The AUTH command.
    pub fn start(&self) -> Command {
        self.start.clone()
    }

    /// The answer to a 334. When nothing is owed the challenge carries an error (Gmail's base64 JSON): an
    /// empty line asks for the final refusal, once.
    pub fn respond(&mut self) -> Option<Command> {
        let owed = self.responses.pop();
        let last = owed.is_none() && !std::mem::replace(&mut self.asked, owed.is_none());
        owed.or_else(|| last.then(|| Command::AuthResponse(String::new())))
    }
}

impl ServerExchange {
    /// Takes an AUTH command.
    pub fn start(mechanism: Mechanism, initial: Option<&str>) -> ServerStep {
        let challenge =
            |exchange, text: &str| ServerStep::Challenge(exchange, Reply::new(334, None, text));
        match (mechanism, initial) {
            // Some devices quit unless the challenges are exactly these (devices.md row 10).
            (Mechanism::Login, None) => challenge(Self::LoginUser, "VXNlcm5hbWU6"),
            (Mechanism::Login, Some(user)) => Self::LoginUser.respond(user.as_bytes()),
            (Mechanism::Plain, None) => challenge(Self::Plain, ""),
            // A single "=" is an empty response (RFC 4954 section 4).
            (Mechanism::Plain, Some(response)) => {
                Self::Plain.respond(response.trim_start_matches('=').as_bytes())
            }
            (Mechanism::XOAuth2, _) => ServerStep::Failed(Reply::new(
                504,
                Enhanced(5, 5, 4),
                "unrecognised authentication type",
            )),
        }
    }

    /// Takes a line of the exchange.
    pub fn respond(self, line: &[u8]) -> ServerStep {
        let line = line.trim_ascii();
        if line == b"*" {
            return ServerStep::Failed(Reply::new(
                501,
                Enhanced(5, 7, 0),
                "authentication cancelled",
            ));
        }
        let undecodable =
            || ServerStep::Failed(Reply::new(501, Enhanced(5, 5, 2), "cannot decode the response"));
        let Some(text) = BASE64.decode(line).ok().and_then(|bytes| String::from_utf8(bytes).ok())
        else {
            return undecodable();
        };
        match self {
            Self::LoginUser => ServerStep::Challenge(
                Self::LoginPassword(text),
                Reply::new(334, None, "UGFzc3dvcmQ6"),
            ),
            Self::LoginPassword(user) => ServerStep::Judge(Credentials { user, secret: text }),
            Self::Plain => {
                let mut parts = text.split('\0');
                match (parts.next(), parts.next(), parts.next(), parts.next()) {
                    (Some(_), Some(user), Some(secret), None) => ServerStep::Judge(Credentials {
                        user: user.to_owned(),
                        secret: secret.to_owned(),
                    }),
                    _ => undecodable(),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credentials() -> Credentials {
        Credentials { user: "scan@example.org".into(), secret: "geheim".into() }
    }

    fn offered(mechanisms: &[Mechanism]) -> Capabilities {
        Capabilities { mechanisms: mechanisms.to_vec(), ..Default::default() }
    }

    #[test]
    fn a_password_goes_by_login_unless_only_plain_is_offered_or_wanted() {
        let first = |prefer_plain, mechanisms: &[Mechanism]| {
            let login = Login::Password { credentials: credentials(), prefer_plain };
            login.exchange(&offered(mechanisms)).map(|exchange| match exchange.start() {
                Command::Auth(mechanism, _) => mechanism,
                other => panic!("{other:?}"),
            })
        };
        let both = [Mechanism::Plain, Mechanism::Login];
        assert_eq!(first(false, &both).as_deref(), Some("LOGIN"));
        assert_eq!(first(true, &both).as_deref(), Some("PLAIN"));
        assert_eq!(first(false, &[Mechanism::Plain]).as_deref(), Some("PLAIN"));
        assert_eq!(first(true, &[Mechanism::Login]).as_deref(), Some("LOGIN"));
        assert_eq!(first(false, &[Mechanism::XOAuth2]), None);
    }

    #[test]
    fn login_answers_two_challenges() {
        let login = Login::Password { credentials: credentials(), prefer_plain: false };
        let mut exchange = login.exchange(&offered(&[Mechanism::Login])).unwrap();
        assert_eq!(exchange.start(), Command::Auth("LOGIN".into(), None));
        assert_eq!(
            exchange.respond(),
            Some(Command::AuthResponse("c2NhbkBleGFtcGxlLm9yZw==".into()))
        );
        assert_eq!(exchange.respond(), Some(Command::AuthResponse("Z2VoZWlt".into())));
        assert_eq!(exchange.respond(), Some(Command::AuthResponse(String::new())));
        assert_eq!(exchange.respond(), None, "nobody is asked for ever");
    }

    #[test]
    fn a_token_that_does_not_fit_goes_in_two_steps() {
        let start = |secret: String| {
            let login = Login::Token(Credentials { user: "u".into(), secret });
            login.exchange(&offered(&[Mechanism::XOAuth2])).unwrap()
        };
        let mut short = start("t".into());
        assert_eq!(
            short.start(),
            Command::Auth("XOAUTH2".into(), Some("dXNlcj11AWF1dGg9QmVhcmVyIHQBAQ==".into()))
        );
        assert_eq!(
            short.respond(),
            Some(Command::AuthResponse(String::new())),
            "the answer to Gmail's error challenge"
        );
        let mut long = start("t".repeat(2_000));
        assert_eq!(long.start(), Command::Auth("XOAUTH2".into(), None));
        assert!(matches!(long.respond(), Some(Command::AuthResponse(blob)) if blob.len() > 2_000));
    }

    #[test]
    fn a_device_logs_in_step_by_step_or_at_once() {
        let ServerStep::Challenge(exchange, reply) = ServerExchange::start(Mechanism::Login, None)
        else {
            panic!()
        };
        assert_eq!(reply.to_string(), "334 VXNlcm5hbWU6");
        let ServerStep::Challenge(exchange, reply) = exchange.respond(b"c2Nhbg== ") else {
            panic!()
        };
        assert_eq!(reply.to_string(), "334 UGFzc3dvcmQ6");
        let ServerStep::Judge(given) = exchange.respond(b"Z2VoZWlt") else { panic!() };
        assert_eq!((given.user.as_str(), given.secret.as_str()), ("scan", "geheim"));

        let ServerStep::Judge(given) =
            ServerExchange::start(Mechanism::Plain, Some("AHNjYW4AZ2VoZWlt"))
        else {
            panic!()
        };
        assert_eq!(given.user, "scan");
        assert!(
            matches!(ServerExchange::start(Mechanism::Login, Some("c2Nhbg")), ServerStep::Challenge(ServerExchange::LoginPassword(user), _) if user == "scan")
        );
    }

    #[test]
    fn what_cannot_be_read_is_refused() {
        for (line, code) in [(&b"*"[..], 501), (b"!!", 501), (b"/w==", 501)] {
            let ServerStep::Failed(reply) = ServerExchange::Plain.respond(line) else {
                panic!("{line:?}")
            };
            assert_eq!(reply.code.get(), code);
        }
        assert!(matches!(
            ServerExchange::start(Mechanism::Plain, Some("=")),
            ServerStep::Failed(_)
        ));
        assert!(
            matches!(ServerExchange::Plain.respond(b"YQBi"), ServerStep::Failed(_)),
            "two parts only"
        );
    }

    #[test]
    fn debug_shows_no_secret() {
        let login = Login::Password { credentials: credentials(), prefer_plain: true };
        let exchange = login.exchange(&offered(&[Mechanism::Plain])).unwrap();
        let shown = format!(
            "{login:?} {exchange:?} {:?} {:?}",
            credentials(),
            ServerExchange::LoginPassword("scan".into())
        );
        assert!(!shown.contains("geheim") && !shown.contains("AHNj"), "{shown}");
    }
}
