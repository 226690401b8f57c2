//! A device's session, played from a script. The first line has a letter for each thing that the listener
//! offers; every other line is one that the device says, behind one octet for what becomes of it:
//!
//! ```text
//! + the smarthost, or whoever judges, takes it      ^ it is longer than a line may be
//! - refuses it for good, ~ for now                  = the smarthost is seen again: as many octets as the
//! ! is lost                                           line has are its limit
//! any other: a reply with a code made of that octet
//! ```

use std::time::Duration;

use smtp_uplift::{
    proto::{
        capabilities::Capabilities,
        client::Stage,
        command::Command,
        limits,
        reply::Reply,
        session::{Features, Offer, Session, SmarthostOffer, Step},
    },
    relay::answer,
    smarthost::{
        classify::{self, catalogue::Catalogue},
        connection::{Lost, LostCause},
    },
};

use super::well_formed;

const RECIPIENTS: usize = 3;
const MESSAGE_SIZE: u64 = 1_000;

/// * Whatever is said, the session answers in form, and closes after a bounded number of faults.
/// * Nothing is taken out of its turn: no MAIL before EHLO, no recipient without a sender, no data without
///   a recipient that was taken, no login where it would go in the clear, none of it before a required
///   STARTTLS or login.
/// * After STARTTLS nothing is remembered.
/// * The dot hears 250 when the smarthost has said 250, and only then.
pub fn session(input: &[u8]) {
    let mut lines = input.split(|octet| *octet == b'\n');
    let mut play = Play::new(lines.next().unwrap_or_default());
    for line in lines {
        let Some((becomes, said)) = line.split_first() else { continue };
        if play.line(*becomes, said).is_none() {
            return;
        }
        play.agrees();
    }
}

/// A session and what has to be true of it.
struct Play {
    session: Session,
    features: Features,
    smarthost: SmarthostOffer,
    tls: bool,
    greeted: bool,
    user: Option<String>,
    /// A 334 waits for its response.
    challenged: bool,
    /// MAIL was taken.
    open: bool,
    named: usize,
    taken: usize,
    faults: u32,
}

impl Play {
    fn new(letters: &[u8]) -> Self {
        let has = |letter| letters.contains(&letter);
        let offer = |offered, required| match (has(offered), has(required)) {
            (_, true) => Offer::Required,
            (true, _) => Offer::Yes,
            _ => Offer::No,
        };
        let features = Features {
            hostname: "relay.example".into(),
            message_size: MESSAGE_SIZE,
            recipients: RECIPIENTS,
            starttls: offer(b's', b'S'),
            auth: offer(b'a', b'A'),
            auth_without_tls: has(b'p'),
            any_sender: false,
            hide: if has(b'h') { vec!["PIPELINING".into()] } else { vec![] },
        };
        let session = Session::new(features.clone(), has(b't'));
        well_formed(&session.greeting());
        Self {
            session,
            features,
            smarthost: SmarthostOffer::default(),
            tls: has(b't'),
            greeted: false,
            user: None,
            challenged: false,
            open: false,
            named: 0,
            taken: 0,
            faults: 0,
        }
    }

    /// The device says a line; `None` when it is told good bye.
    fn line(&mut self, becomes: u8, said: &[u8]) -> Option<()> {
        match becomes {
            b'=' => {
                let size = Some(said.len() as u64).filter(|size| *size > 0);
                self.smarthost = SmarthostOffer { size, smtputf8: size.is_none() };
                self.session.set_smarthost(self.smarthost);
                return Some(());
            }
            b'^' => {
                self.challenged = false;
                let step = self.session.line_too_long();
                return self.answered(step, None);
            }
            _ => {}
        }
        let command = if self.challenged { None } else { Command::parse(said).ok() };
        self.challenged = false;
        match self.session.line(said) {
            Step::StartTls(reply) => {
                assert_eq!((command, reply.code.get()), (Some(Command::StartTls), 220));
                assert!(self.features.starttls != Offer::No && !self.tls);
                well_formed(&reply);
                self.session.secured();
                (self.tls, self.greeted, self.open, self.user) = (true, false, false, None);
            }
            Step::Login(credentials) => {
                assert!(self.may_log_in());
                let (name, right) = (credentials.user.clone(), becomes == b'+');
                let step = self.session.login(credentials, right);
                if right {
                    let Step::Reply(reply) = step else { panic!("{step:?}") };
                    well_formed(&reply);
                    assert_eq!(reply.code.get(), 235);
                    self.user = Some(name);
                } else {
                    return self.answered(step, None);
                }
            }
            Step::Mail(path, params) => {
                assert!(self.greeted && !self.open && self.may_send());
                assert!(params.size.is_none_or(|size| size <= self.message_size()));
                let reply = self.session.mail_accepted(path, params);
                well_formed(&reply);
                (self.open, self.named, self.taken) = (true, 0, 0);
            }
            Step::Rcpt(path) => {
                self.named += 1;
                assert!(self.open && self.may_send() && self.named <= RECIPIENTS);
                if judged(Stage::Rcpt, becomes, &[250, 251]) {
                    self.session.rcpt_accepted(path);
                    self.taken += 1;
                }
            }
            Step::Data => {
                assert!(self.open && self.may_send() && self.taken > 0);
                if judged(Stage::Data, becomes, &[354]) {
                    judged(Stage::Eod, becomes, &[250]);
                }
                self.session.data_done();
                self.open = false;
            }
            step => return self.answered(step, command),
        }
        Some(())
    }

    /// A reply of the session's own to a line that was this command, if it was any.
    fn answered(&mut self, step: Step, command: Option<Command>) -> Option<()> {
        let (reply, closed) = match step {
            Step::Reply(reply) => {
                assert_ne!(command, Some(Command::Data), "mail data may follow: {reply}");
                (reply, false)
            }
            Step::DataRefused(reply) => {
                assert!(reply.code.is_permanent(), "{reply}");
                (reply, false)
            }
            Step::Close(reply) => (reply, true),
            other => panic!("{other:?}"),
        };
        well_formed(&reply);
        match (reply.code.get(), &command) {
            (221, Some(Command::Quit)) => assert!(closed),
            (421, _) => {
                self.faults += 1;
                assert_eq!((closed, self.faults), (true, limits::FAULTS));
            }
            (250, Some(Command::Ehlo(_))) => {
                (self.greeted, self.open) = (true, false);
                self.offers(&reply);
            }
            (250, Some(Command::Helo(_))) => (self.greeted, self.open) = (true, false),
            (250, Some(Command::Rset)) => self.open = false,
            (250, Some(Command::Noop))
            | (214, Some(Command::Help))
            | (252, Some(Command::Vrfy)) => {}
            (334, _) => {
                assert!(self.may_log_in(), "{reply}");
                self.challenged = true;
            }
            // The device cannot know our limits.
            (552, Some(Command::Mail(..))) | (452, Some(Command::Rcpt(_))) => {}
            (500..600, _) => {
                self.faults += 1;
                assert!(self.faults < limits::FAULTS, "{} faults", self.faults);
            }
            _ => panic!("{command:?} is answered {reply}"),
        }
        (!closed).then_some(())
    }

    fn offers(&self, reply: &Reply) {
        let offered = Capabilities::parse(reply);
        assert_eq!(offered.starttls, self.features.starttls != Offer::No && !self.tls);
        let auth = self.features.auth != Offer::No && self.user.is_none() && self.is_private();
        assert_eq!(offered.mechanisms.is_empty(), !auth, "{reply}");
        assert_eq!(offered.size, Some(self.message_size()));
        assert_eq!(offered.smtputf8, self.smarthost.smtputf8);
        assert_eq!(offered.pipelining, self.features.hide.is_empty());
    }

    fn message_size(&self) -> u64 {
        self.smarthost.size.unwrap_or(u64::MAX).min(MESSAGE_SIZE)
    }

    /// Whether a password may be said here.
    fn is_private(&self) -> bool {
        self.tls || self.features.auth_without_tls
    }

    fn is_secured(&self) -> bool {
        self.tls || self.features.starttls != Offer::Required
    }

    fn may_log_in(&self) -> bool {
        let asked = self.features.auth != Offer::No && self.user.is_none();
        asked && self.is_private() && self.is_secured() && self.greeted && !self.open
    }

    fn may_send(&self) -> bool {
        self.is_secured() && (self.features.auth != Offer::Required || self.user.is_some())
    }

    fn agrees(&self) {
        assert_eq!(self.session.hello().is_some(), self.greeted);
        assert_eq!(self.session.user(), self.user.as_deref());
        let envelope = self.session.envelope();
        assert_eq!(envelope.is_some(), self.open);
        assert_eq!(
            envelope.map_or(0, |envelope| envelope.recipients.len()),
            if self.open { self.taken } else { 0 }
        );
        assert_eq!(self.session.message_size(), self.message_size());
    }
}

/// What a device hears of the smarthost's verdict; whether it was a yes, which only these codes are.
fn judged(stage: Stage, becomes: u8, yes: &[u16]) -> bool {
    let code = match becomes {
        b'+' => yes[0],
        b'-' => 550,
        b'~' => 451,
        b'!' => {
            let lost = Lost { stage, cause: LostCause::Timeout(Duration::from_secs(1)) };
            let said = answer::lost(&lost);
            well_formed(&said);
            assert!(said.code.is_transient(), "{said}");
            return false;
        }
        octet => 200 + u16::from(octet) * 7 % 400,
    };
    let verdict = Reply::new(code, None, "what the smarthost says");
    let taken = yes.contains(&code);
    let said = match stage {
        Stage::Eod if taken => answer::accepted("k3v9.1", &verdict),
        Stage::Rcpt if taken => answer::recipient_accepted(),
        _ if taken => return true,
        _ => {
            let meaning = classify::reply(Catalogue::built_in(), Some(stage), &verdict);
            answer::refused(stage, &verdict, &meaning)
        }
    };
    well_formed(&said);
    assert_eq!(said.code.get() == 250, taken, "{verdict} became {said}");
    assert!(taken || said.code.get() >= 400, "{verdict} became {said}");
    taken
}
