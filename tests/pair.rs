//! The two protocol machines talk to each other in memory: ours towards the smarthost is answered by ours
//! towards devices, and either side is lost at every step.

#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

use bytes::BytesMut;
use smtp_uplift::proto::{
    client::{Next, Opening, Refusal, Security},
    command::Command,
    reply::Reply,
    sasl::{Credentials, Login},
    session::{Features, Offer, Session, Step},
};

fn session() -> Session {
    let features = Features {
        hostname: "smarthost.example".into(),
        message_size: 1_000,
        recipients: 10,
        starttls: Offer::Required,
        auth: Offer::Required,
        auth_without_tls: false,
        any_sender: false,
        hide: vec![],
    };
    Session::new(features, false)
}

fn opening(secret: &str) -> Opening {
    let credentials = Credentials { user: "relay".into(), secret: secret.into() };
    Opening::new(
        "relay.example",
        Security::StartTls,
        Login::Password { credentials, prefer_plain: false },
    )
}

/// What the session says to a command, as its driver would have it.
fn answer(session: &mut Session, command: &Command) -> Reply {
    let mut line = BytesMut::new();
    command.encode(&mut line);
    match session.line(line.strip_suffix(b"\r\n").unwrap()) {
        Step::Reply(reply) | Step::Close(reply) | Step::StartTls(reply) => reply,
        Step::Login(credentials) => {
            let right = credentials.secret == "right";
            match session.login(credentials, right) {
                Step::Reply(reply) => reply,
                other => panic!("{other:?}"),
            }
        }
        other => panic!("{other:?}"),
    }
}

/// Talks until mail may flow, or for `steps` replies, the last of which `spoil` changes. Returns the steps made.
fn talk(secret: &str, steps: usize, spoil: impl Fn(Reply) -> Reply) -> Result<usize, Refusal> {
    let (mut session, mut opening) = (session(), opening(secret));
    let mut reply = session.greeting();
    for step in 1.. {
        if step == steps {
            reply = spoil(reply);
        }
        match opening.reply(&reply)? {
            Next::Send(command) => reply = answer(&mut session, &command),
            Next::Handshake => {
                session.secured();
                let Next::Send(ehlo) = opening.secured() else { panic!("EHLO comes first") };
                reply = answer(&mut session, &ehlo);
            }
            Next::Ready => return Ok(step),
        }
    }
    unreachable!("a dialogue ends")
}

#[test]
fn they_understand_each_other() {
    // Greeting, EHLO, STARTTLS, EHLO, AUTH, user name, password.
    assert_eq!(talk("right", usize::MAX, |reply| reply), Ok(7));
}

#[test]
fn a_wrong_password_is_a_refusal_with_its_reply() {
    let refused = talk("wrong", usize::MAX, |reply| reply).unwrap_err().to_string();
    assert_eq!(
        refused,
        "the smarthost refused at auth: 535 5.7.8 authentication failed: user name or password is wrong"
    );
}

#[test]
fn whatever_is_said_instead_at_any_step_ends_in_a_refusal_or_goes_on() {
    for step in 1..=7 {
        for code in [220, 235, 250, 334, 354, 421, 451, 500, 535, 554] {
            let spoilt = talk("right", step, |_| Reply::new(code, None, "something else"));
            let usual = [220, 250, 220, 250, 334, 334, 235][step - 1];
            if code != usual && !(step >= 5 && (code == 334 || code == 235)) {
                assert!(
                    matches!(spoilt, Err(Refusal::Reply(..))),
                    "{code} at step {step}: {spoilt:?}"
                );
            }
        }
    }
}
