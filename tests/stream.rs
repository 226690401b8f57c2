//! The way of one message in `stream` mode: what the smarthost says is what the device hears, never better.

#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

mod common;

use std::sync::atomic::Ordering;

use common::{House, MAILBOX, MESSAGE, PASSWORD, Plan, fault};
use smtp_uplift::sandbox::scenario::Scenario;

#[tokio::test]
async fn a_message_arrives_as_it_was_sent_with_one_field_more() {
    let house = House::new().await;
    let reply = house
        .old_device()
        .await
        .send("a@example.com", &["b@example.net", "c@example.net"], MESSAGE)
        .await
        .unwrap();
    let reply = reply.to_string();
    assert!(
        reply.starts_with("250 2.0.0 ok, id ") && reply.ends_with("; smarthost: 250 OK"),
        "{reply}"
    );
    let id = reply["250 2.0.0 ok, id ".len()..].split(';').next().unwrap();

    let delivery = house.sandbox.deliveries().pop().unwrap();
    assert_eq!((delivery.from.as_str(), delivery.user.as_str()), ("a@example.com", MAILBOX));
    assert_eq!(delivery.recipients, ["b@example.net", "c@example.net"]);
    let arrived = String::from_utf8(delivery.data.to_vec()).unwrap();
    let received = arrived.strip_suffix(MESSAGE).expect("the message itself is untouched");
    assert!(received.starts_with("Received: from copier ([127.0.0.1])\r\n by relay.example (smtp-uplift)\r\n (version=TLSv1 cipher="), "{received}");
    assert!(received.contains(&format!("\r\n with ESMTPS id {id};\r\n ")), "{received}");
}

#[tokio::test]
async fn row_22_awkward_messages_arrive_too() {
    let house = House::new().await;
    let long = format!("Subject: x\r\n\r\n{}\r\n", "L".repeat(5_000));
    let wide = "Subject: b\u{fc}ro\r\n\r\n8-bit \u{e9}\r\n";
    let mut device = house.device().await;
    for message in [
        "",
        "\r\n",
        "Subject: header only\r\n",
        "no header at all\r\n",
        &long,
        wide,
        "\r\n..\r\n...\r\n",
    ] {
        let reply =
            device.send("a@example.com", &["b@example.net"], message.to_owned()).await.unwrap();
        assert_eq!(reply.code.get(), 250, "{message:?}: {reply}");
        let arrived = house.sandbox.deliveries().pop().unwrap().data;
        assert!(arrived.ends_with(message.as_bytes()), "{message:?}");
    }
    let big = "0123456789abcde\r\n".repeat(300_000);
    assert_eq!(
        device.send("a@example.com", &["b@example.net"], big.clone()).await.unwrap().code.get(),
        250
    );
    assert!(house.sandbox.deliveries().pop().unwrap().data.ends_with(big.as_bytes()));
}

#[tokio::test]
async fn addresses_outside_ascii_go_up_only_where_they_are_taken() {
    let house = House::new().await;
    let heard = house.send("b\u{fc}ro@example.com", &["b@example.net"]).await;
    assert!(heard.starts_with("250 2.0.0"), "{heard}");
    let scenario = Scenario {
        hide: vec!["SMTPUTF8".into()],
        password: Some(PASSWORD.into()),
        ..Scenario::default()
    };
    let house = House::build(Plan { scenario, ..Plan::default() }).await;
    for (from, to) in [("b\u{fc}ro@example.com", "b@example.net"), ("a@b", "b\u{fc}ro@example.net")]
    {
        let heard = house.send(from, &[to]).await;
        assert!(
            heard.starts_with("553 5.6.7 the smarthost takes no address outside ASCII"),
            "{heard}"
        );
    }
    assert!(house.send("a@b", &["c@d"]).await.starts_with("250"), "the connection is of use still");
}

#[tokio::test]
async fn row_20_line_ends_are_mended_or_refused_as_configured() {
    let house = House::new().await;
    let sloppy = "Subject: x\n\n.\nbare\rCR and \0\r\n";
    assert_eq!(
        house
            .device()
            .await
            .send("a@example.com", &["b@example.net"], sloppy)
            .await
            .unwrap()
            .code
            .get(),
        250
    );
    let arrived = house.sandbox.deliveries().pop().unwrap().data;
    assert!(arrived.ends_with(b"Subject: x\r\n\r\n..\r\nbare CR and  \r\n"), "{arrived:?}");
    assert_eq!(house.metric("device_faults_total{kind=\"bare_lf\",listener=\"lan\"}"), 1.0);

    let strict =
        House::build(Plan { listener: "line_endings = \"strict\"", ..Plan::default() }).await;
    let mut device = strict.device().await;
    let reply = device.send("a@example.com", &["b@example.net"], sloppy).await.unwrap().to_string();
    assert_eq!(
        reply,
        "554 5.6.0 the message holds a line feed without a carriage return (RFC 5321 section 2.3.8)"
    );
    assert!(
        device.send("a@example.com", &["b@example.net"], MESSAGE).await.unwrap().code.is_positive()
    );
    assert_eq!(strict.sandbox.deliveries().len(), 1);
}

#[tokio::test]
async fn every_verdict_is_the_smarthosts() {
    let house = House::new().await;
    for (from, to, heard) in [
        ("a@x", "reply-550-5.1.1@x", "550 5.1.1 scripted by the sandbox"),
        ("a@x", "reply-452-4.5.3@x", "452 4.5.3 scripted by the sandbox"),
        (
            "reply-550-5.1.8@x",
            "b@x",
            "451 4.7.0 waiting for the relay's operator: scripted by the sandbox",
        ),
        ("reply-501-5.1.7@x", "b@x", "501 5.1.7 scripted by the sandbox"),
        // Time heals it: the mailbox has sent its share for today.
        ("a@x", "reply-550-5.1.90@x", "451 4.1.90 scripted by the sandbox"),
        (
            "reply-530-5.7.57@x",
            "b@x",
            "451 4.7.0 waiting for the relay's operator: scripted by the sandbox",
        ),
        (
            "a@x",
            "reply-554-5.2.252-data@x",
            "451 4.7.0 waiting for the relay's operator: scripted by the sandbox",
        ),
        (
            "a@x",
            "reply-554-5.2.252-dot@x",
            "451 4.7.0 waiting for the relay's operator: scripted by the sandbox",
        ),
        ("a@x", "reply-432-4.3.2-dot@x", "451 4.3.2 scripted by the sandbox"),
        (
            "a@x",
            "reply-252-2.0.0-dot@x",
            "451 4.5.0 the smarthost gave an unexpected answer at eod: 252 scripted by the sandbox",
        ),
        (
            "a@x",
            "reply-421-4.3.2-dot@x",
            "451 4.4.2 the smarthost closes the connection: scripted by the sandbox; try again",
        ),
        (
            "a@x",
            "reply-250-2.0.0-data@x",
            "451 4.5.0 the smarthost gave an unexpected answer at data: 250 scripted by the sandbox",
        ),
        (
            "a@x",
            "reply-354-2.0.0@x",
            "451 4.5.0 the smarthost gave an unexpected answer at rcpt: 354 scripted by the sandbox",
        ),
        (
            "a@x",
            "reply-502-5.3.3@x",
            "451 4.5.0 the smarthost does not understand us at rcpt: 502 scripted by the sandbox",
        ),
        (
            "a@x",
            "close-rcpt@x",
            "451 4.4.2 the connection to the smarthost was lost at rcpt; try again",
        ),
        (
            "a@x",
            "close-data@x",
            "451 4.4.2 the connection to the smarthost was lost at data; try again",
        ),
        (
            "a@x",
            "close-after-dot@x",
            "451 4.4.2 the connection to the smarthost was lost at eod; try again",
        ),
    ] {
        assert_eq!(house.send(from, &[to]).await, heard, "{from} {to}");
        assert!(
            house.send("a@x", &["b@x"]).await.starts_with("250"),
            "the next message goes through after {to}"
        );
    }
    let sent = house.sandbox.counts().accepted.load(Ordering::SeqCst);
    assert_eq!(sent, 17, "nothing that was refused was taken");
    let result = |result: &str| {
        house.metric(&format!("messages_total{{mailbox=\"{MAILBOX}\",result=\"{result}\"}}"))
    };
    assert_eq!((result("relayed"), result("refused"), result("unknown")), (17.0, 16.0, 1.0));
}

#[tokio::test]
async fn one_refused_recipient_does_not_stop_the_others() {
    let house = House::new().await;
    let mut device = house.device().await;
    for (line, answer) in [
        ("MAIL FROM:<a@x>", "250 2.1.0"),
        ("RCPT TO:<b@x>", "250 2.1.5"),
        ("RCPT TO:<reply-550-5.1.1@x>", "550 5.1.1"),
        ("RCPT TO:<reply-452-4.5.3@x>", "452 4.5.3"),
        ("RCPT TO:<c@x>", "250 2.1.5"),
        ("DATA", "354"),
    ] {
        let said = device.say(line).await.unwrap().to_string();
        assert!(said.starts_with(answer), "{line}: {said}");
    }
    device.write(MESSAGE).await.unwrap();
    assert!(device.say(".").await.unwrap().code.is_positive());
    assert_eq!(house.sandbox.deliveries()[0].recipients, ["b@x", "c@x"]);
}

#[tokio::test]
async fn a_device_that_vanishes_before_its_dot_sends_nothing() {
    let house = House::new().await;
    let mut device = house.device().await;
    for line in ["MAIL FROM:<a@x>", "RCPT TO:<b@x>", "DATA"] {
        device.say(line).await.unwrap();
    }
    device.write("Subject: half\r\n\r\nof a mess").await.unwrap();
    drop(device);
    assert!(house.send("a@x", &["b@x"]).await.starts_with("250"));
    house.service.stop(std::future::pending()).await;
    house.sandbox.delivered(1).await;
    let counts = house.sandbox.counts();
    assert_eq!((counts.cut.load(Ordering::SeqCst), counts.accepted.load(Ordering::SeqCst)), (1, 1));
}

#[tokio::test]
async fn a_smarthost_that_vanishes_in_the_data_is_a_451_after_them() {
    let house = House::new().await;
    let mut device = house.device().await;
    let big = "0123456789abcde\r\n".repeat(200_000);
    let reply = device.send("a@x", &["close-in-data@x"], big).await.unwrap().to_string();
    assert!(reply.starts_with("451 4.4.2 the connection to the smarthost was lost"), "{reply}");
    let reply = device.send("a@x", &["b@x"], MESSAGE).await.unwrap();
    assert!(reply.code.is_positive(), "the session goes on: {reply}");
}

#[tokio::test]
async fn a_message_that_is_too_large_is_refused_at_mail_or_after_its_dot() {
    let house =
        House::build(Plan { more: "[limits]\nmessage_size = 1000", ..Plan::default() }).await;
    let mut device = house.device().await;
    let reply = device.say("MAIL FROM:<a@x> SIZE=1001").await.unwrap().to_string();
    assert_eq!(reply, "552 5.3.4 message too large: at most 1000 octets are taken");
    let reply = device
        .send("a@x", &["b@x"], "0123456789abcde\r\n".repeat(5_000))
        .await
        .unwrap()
        .to_string();
    assert_eq!(reply, "552 5.3.4 message too large: at most 1000 octets are taken");
    assert!(device.send("a@x", &["b@x"], MESSAGE).await.unwrap().code.is_positive());
    assert_eq!(house.sandbox.deliveries().len(), 1);
}

#[tokio::test]
async fn parameters_that_a_back_end_does_not_know_are_left_out() {
    let house = House::build(Plan {
        scenario: fault("stage = 'mail'\nreply = '502 5.3.3 Command not implemented'\ntimes = 1"),
        ..Plan::default()
    })
    .await;
    let mut device = house.device().await;
    assert!(device.say("MAIL FROM:<a@x> BODY=8BITMIME").await.unwrap().code.is_positive());
    assert!(device.say("RCPT TO:<b@x>").await.unwrap().code.is_positive());
}

#[tokio::test]
async fn logins_that_exchange_online_and_others_ask_for() {
    let long = "t".repeat(2_000);
    for (offered, mailbox, scenario) in [
        (
            "LOGIN XOAUTH2",
            "password = { file = \"password\" }",
            Scenario { password: Some(PASSWORD.into()), ..Scenario::default() },
        ),
        (
            "PLAIN",
            "password = { file = \"password\" }\nauth = \"login\"",
            Scenario { password: Some(PASSWORD.into()), ..Scenario::default() },
        ),
        (
            "LOGIN PLAIN",
            "password = { file = \"password\" }\nauth = \"plain\"",
            Scenario { password: Some(PASSWORD.into()), ..Scenario::default() },
        ),
        (
            "XOAUTH2",
            "[mailbox.oauth]\ntoken = \"short\"",
            Scenario { token: Some("short".into()), ..Scenario::default() },
        ),
        (
            "XOAUTH2",
            &format!("[mailbox.oauth]\ntoken = \"{long}\""),
            Scenario { token: Some(long.clone()), ..Scenario::default() },
        ),
    ] {
        let auth = offered.split(' ').map(str::to_owned).collect();
        let house = House::build(Plan {
            scenario: Scenario { auth, ..scenario },
            mailbox,
            ..Plan::default()
        })
        .await;
        let answer = house.send("a@x", &["b@x"]).await;
        assert!(answer.starts_with("250"), "{offered}: {answer}");
    }
}

#[tokio::test]
async fn trouble_on_the_way_to_the_smarthost_is_a_451_that_says_whose_it_is() {
    let wrong = Scenario { password: Some("another".into()), ..Scenario::default() };
    let stripped = Scenario { starttls: false, ..Scenario::default() };
    for (plan, heard) in [
        (
            Plan { scenario: wrong, ..Plan::default() },
            "451 4.7.0 waiting for the relay's operator: the mailbox cannot log in",
        ),
        (
            Plan { scenario: stripped, ..Plan::default() },
            "451 4.4.1 the smarthost cannot be reached; try again",
        ),
        (
            Plan { smarthost: "tls = \"implicit\"", ..Plan::default() },
            "451 4.4.1 the smarthost cannot be reached; try again",
        ),
        (
            Plan {
                scenario: fault("stage = 'connect'\nreply = '554 5.7.1 no'\nclose = true"),
                ..Plan::default()
            },
            "451 4.7.0 waiting for the relay's operator: the smarthost does not let us in",
        ),
        (
            Plan {
                scenario: fault("stage = 'connect'\ndelay = 60"),
                smarthost: "lease_wait = \"200ms\"",
                settled: false,
                ..Plan::default()
            },
            "451 4.3.2 all connections to the smarthost are busy; try again",
        ),
    ] {
        let house = House::build(plan).await;
        assert_eq!(house.send("a@x", &["b@x"]).await, heard);
        assert_eq!(house.sandbox.counts().accepted.load(Ordering::SeqCst), 0);
    }
    let house = House::new().await;
    house.sandbox.stop().await;
    let mut device =
        smtp_uplift::sandbox::device::Device::connect(house.service.address("lan").unwrap())
            .await
            .unwrap();
    device.say("EHLO x").await.unwrap();
    let heard = device.send("a@x", &["b@x"], MESSAGE).await.unwrap().to_string();
    assert!(heard.starts_with("451 4.4."), "{heard}");
}

#[tokio::test]
async fn a_certificate_that_nobody_vouches_for_gets_no_mail() {
    let house = House::new().await;
    let other = House::new().await;
    // This house trusts the other one's smarthost only.
    let plan = Plan::default();
    let text = common::configuration(
        &plan,
        house.sandbox.address().port(),
        other.sandbox.certificate(),
        house.folder.path(),
    );
    let config =
        smtp_uplift::config::parse(&text, &house.folder.path().join("x.toml")).unwrap().config;
    let service = smtp_uplift::service::Service::start(config).await.unwrap();
    let mut device = smtp_uplift::sandbox::device::Device::connect(service.address("lan").unwrap())
        .await
        .unwrap();
    device.say("EHLO x").await.unwrap();
    let heard = device.send("a@x", &["b@x"], MESSAGE).await.unwrap().to_string();
    assert_eq!(heard, "451 4.4.1 the smarthost cannot be reached; try again");
    assert_eq!(service.metrics().render().matches("outcome=\"tls\"").count(), 1);
}

#[tokio::test]
async fn a_silent_device_loses_its_connection_to_the_smarthost() {
    let house = House::build(Plan {
        mailbox: "password = { file = \"password\" }\nmax_connections = 1",
        smarthost: "lease_wait = \"15s\"",
        ..Plan::default()
    })
    .await;
    let mut silent = house.device().await;
    for line in ["MAIL FROM:<a@x>", "RCPT TO:<b@x>", "DATA"] {
        silent.say(line).await.unwrap();
    }
    // There is one connection, and the silent device has it: this one gets it after ten seconds.
    assert!(house.send("a@x", &["b@x"]).await.starts_with("250"));
    silent.write(MESSAGE).await.unwrap();
    let heard = silent.say(".").await.unwrap().to_string();
    assert_eq!(
        heard,
        "451 4.4.2 too slow: the connection to the smarthost was given up; try again"
    );
    assert_eq!(house.sandbox.deliveries().len(), 1);
}

#[tokio::test]
async fn a_device_that_talks_but_does_not_move_loses_its_connection_too() {
    let house = House::build(Plan {
        mailbox: "password = { file = \"password\" }\nmax_connections = 1",
        smarthost: "lease_wait = \"18s\"",
        ..Plan::default()
    })
    .await;
    let mut talker = house.device().await;
    for line in ["MAIL FROM:<a@x>", "RCPT TO:<b@x>"] {
        talker.say(line).await.unwrap();
    }
    let waiting = house.send("a@x", &["b@x"]);
    tokio::pin!(waiting);
    // It says NOOP whenever it has an answer to the last one.
    let heard = loop {
        tokio::select! {
            heard = &mut waiting => break heard,
            () = tokio::time::sleep(std::time::Duration::from_millis(200)) => {
                assert!(talker.say("NOOP").await.unwrap().code.is_positive());
            }
        }
    };
    assert!(heard.starts_with("250"), "{heard}");
    assert!(talker.say("DATA").await.unwrap().to_string().starts_with("451 4.4.2 too slow"));
}

#[tokio::test]
async fn a_stray_answer_is_not_taken_for_the_verdict() {
    // Said behind the 250 of the first message, and so in front of everything that the second one hears.
    let scenario = fault("stage = 'idle'\nreply = '250 2.0.0 stray'\ntimes = 1");
    let house = House::build(Plan { scenario, ..Plan::default() }).await;
    assert!(house.send("a@x", &["b@x"]).await.starts_with("250"));
    // Noticed before the flight, behind it, or before DATA: never a yes.
    let heard = house.send("a@x", &["reply-550-5.1.1@x"]).await;
    assert!(heard.starts_with("550 5.1.1") || heard.starts_with("451 4.4.2"), "{heard}");
    assert_eq!(
        house.send("a@x", &["reply-554-5.2.0-dot@x"]).await,
        "554 5.2.0 scripted by the sandbox"
    );
    assert_eq!(house.sandbox.deliveries().len(), 1);
}

#[tokio::test]
async fn a_refused_login_is_not_repeated_for_every_message() {
    let wrong = Scenario { password: Some("another".into()), ..Scenario::default() };
    let house = House::build(Plan { scenario: wrong, ..Plan::default() }).await;
    for _ in 0..5 {
        let heard = house.send("a@x", &["b@x"]).await;
        assert_eq!(heard, "451 4.7.0 waiting for the relay's operator: the mailbox cannot log in");
    }
    assert_eq!(house.sandbox.counts().refused_logins.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_smarthost_that_begins_with_tls_is_served_too() {
    let scenario =
        Scenario { implicit: true, password: Some(PASSWORD.into()), ..Scenario::default() };
    let house =
        House::build(Plan { scenario, smarthost: "tls = \"implicit\"", ..Plan::default() }).await;
    assert!(house.send("a@x", &["b@x"]).await.starts_with("250"));
}

#[tokio::test]
async fn a_refusal_keeps_the_connection_only_if_it_speaks_of_the_mail() {
    for (to, kept) in [
        ("reply-550-5.1.10@x", true),
        ("reply-554-5.2.252-dot@x", true),
        ("reply-452-4.5.3@x", true),
        // The login behind the connection is not good any more, or the back end behind it is gone.
        ("reply-530-5.7.57@x", false),
        ("reply-421-4.3.2@x", false),
    ] {
        let house = House::new().await;
        assert!(!house.send("a@x", &[to]).await.starts_with("250"));
        assert!(house.send("a@x", &["b@x"]).await.starts_with("250"));
        let connections = house.sandbox.counts().connections.load(Ordering::SeqCst);
        assert_eq!(connections, if kept { 1 } else { 2 }, "{to}");
    }
}
