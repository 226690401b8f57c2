//! What a session may use up: each limit where it bites, with its metric.

use std::sync::Arc;

use bytes::Bytes;
use smtp_uplift::{
    policy::household,
    sandbox::device::Device,
    transport::{device_tls::DeviceTls, listener::Seats},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::{Instant, sleep, timeout},
};

use super::{device_at, limited, say, seconds};
use crate::common::{KEEP, MESSAGE, Plan, memory::InMemory, memory::timed};

const AT: &str = "10.0.0.3";

async fn house(limits: &str) -> InMemory {
    let more = format!("[limits]\n{limits}\n");
    InMemory::build(Plan { more: &more, ..Plan::default() }).await
}

/// Says NOOP each so many seconds until the relay says something by itself.
async fn go_on(device: &mut Device, each: u64) -> String {
    loop {
        if let Ok(heard) = timeout(seconds(each), device.read()).await {
            return heard.unwrap().to_string();
        }
        assert!(say(device, "NOOP").await.starts_with("250 "));
    }
}

#[tokio::test(start_paused = true)]
async fn commands_without_a_message_end() {
    let house = house("recipients = 5\ncommands = 20").await;
    let mut device = device_at(&house, AT).await;
    for round in 0..3 {
        for _ in 0..10 {
            assert!(say(&mut device, "NOOP").await.starts_with("250 "), "{round}");
        }
        assert!(device.send("a@x", &["b@x"], MESSAGE).await.unwrap().code.is_positive());
    }
    for _ in 0..20 {
        assert!(say(&mut device, "NOOP").await.starts_with("250 "));
    }
    let heard = say(&mut device, "NOOP").await;
    assert_eq!(heard, "421 4.7.0 too many commands without a message, closing");
    assert!(device.is_closed().await);
    assert_eq!(limited(&house, "commands"), 1.0);
}

#[tokio::test(start_paused = true)]
async fn errors_lines_and_recipients_are_counted() {
    let house = house("recipients = 2").await;
    let mut device = device_at(&house, AT).await;
    let long = "x".repeat(3_000);
    assert!(say(&mut device, &long).await.starts_with("500 5.5.6 "));
    assert!(say(&mut device, &"x".repeat(20_000)).await.starts_with("500 5.5.6 "));
    assert_eq!(limited(&house, "line"), 2.0);
    say(&mut device, "MAIL FROM:<a@x>").await;
    for (to, heard) in [("b", "250 "), ("c", "250 "), ("d", "452 4.5.3 ")] {
        assert!(say(&mut device, &format!("RCPT TO:<{to}@x>")).await.starts_with(heard), "{to}");
    }
    assert_eq!(limited(&house, "recipients"), 1.0);
    for _ in 0..17 {
        assert!(say(&mut device, "WHAT").await.starts_with("500 "));
    }
    assert!(say(&mut device, "WHAT").await.starts_with("421 4.7.0 "));
    assert_eq!(limited(&house, "errors"), 1.0);
}

/// devices.md row 30: a device keeps its connection for hours between jobs.
#[tokio::test(start_paused = true)]
async fn row_30_an_idle_connection_ends_after_its_limit_and_holds_no_lease() {
    let house = house("").await;
    let mut device = device_at(&house, AT).await;
    assert!(device.send("a@x", &["b@x"], MESSAGE).await.unwrap().code.is_positive());
    sleep(seconds(1)).await;
    assert_eq!(house.pool().connections().leased, 0);
    sleep(seconds(590)).await;
    assert!(device.send("a@x", &["b@x"], MESSAGE).await.unwrap().code.is_positive(), "not yet");
    let (heard, took) = timed(device.read()).await;
    assert_eq!(heard.unwrap().to_string(), "421 4.4.2 nothing came for too long, closing");
    assert!(took >= seconds(600) && took < seconds(601), "{took:?}");
    assert!(device.is_closed().await);
    assert_eq!(limited(&house, "idle"), 1.0);
    let heard = house.send_from(AT, "a@x", &["b@x"]).await;
    assert!(heard.starts_with("250 "), "the next one is welcome: {heard}");
}

#[tokio::test(start_paused = true)]
async fn a_session_that_hands_in_nothing_ends_whatever_it_says() {
    let house = house("idle_timeout = \"10m\"").await;
    let (began, mut device) = (Instant::now(), device_at(&house, AT).await);
    let heard = go_on(&mut device, 300).await;
    assert!(heard.starts_with("421 4.4.2 "), "{heard}");
    assert!(began.elapsed() >= seconds(3_600) && began.elapsed() <= seconds(3_900));
    assert_eq!(limited(&house, "idle"), 1.0);
}

#[tokio::test(start_paused = true)]
async fn a_transaction_goes_on_to_its_data_in_time() {
    for delivery in [crate::common::STREAM, KEEP] {
        let house = InMemory::build(Plan { delivery, ..Plan::default() }).await;
        let (mut device, began) = (device_at(&house, AT).await, Instant::now());
        say(&mut device, "MAIL FROM:<a@x>").await;
        say(&mut device, "RCPT TO:<b@x>").await;
        let heard = go_on(&mut device, 100).await;
        assert!(heard.starts_with("421 4.4.2 "), "{heard}");
        assert!(began.elapsed() >= seconds(1_800) && began.elapsed() <= seconds(1_900));
        assert_eq!(limited(&house, "transaction"), 1.0);
        let mut device = device_at(&house, AT).await;
        say(&mut device, "MAIL FROM:<a@x>").await;
        let (heard, took) = timed(device.read()).await;
        assert_eq!(heard.unwrap().code.get(), 421);
        assert!(took >= seconds(300) && took < seconds(301), "{took:?}");
        assert_eq!(limited(&house, "command"), 1.0);
    }
}

#[tokio::test(start_paused = true)]
async fn data_that_do_not_move_end() {
    for delivery in [crate::common::STREAM, KEEP] {
        let house = InMemory::build(Plan { delivery, ..Plan::default() }).await;
        let mut device = device_at(&house, AT).await;
        for line in ["MAIL FROM:<a@x>", "RCPT TO:<b@x>", "DATA"] {
            say(&mut device, line).await;
        }
        let trickle = async {
            for _ in 0..60 {
                device.write("x").await.unwrap();
                sleep(seconds(1)).await;
            }
            device.read().await.unwrap().to_string()
        };
        assert!(trickle.await.starts_with("421 4.4.2 "));
        assert_eq!(limited(&house, "rate"), 1.0, "{delivery}");
        assert!(house.sandbox.deliveries().is_empty());
    }
}

/// A device that is told at its dot that its message is too large has to come to one.
#[tokio::test(start_paused = true)]
async fn refused_data_are_read_for_a_while_and_not_for_ever() {
    for delivery in [crate::common::STREAM, KEEP] {
        let more = "[limits]\nmessage_size = \"1KiB\"";
        let house = InMemory::build(Plan { delivery, more, ..Plan::default() }).await;
        let mut device = device_at(&house, AT).await;
        for line in ["MAIL FROM:<a@x>", "RCPT TO:<b@x>", "DATA"] {
            say(&mut device, line).await;
        }
        let lines = Bytes::from(format!("{}\r\n", "x".repeat(998)).repeat(64));
        let mut written = 0;
        while device.write(lines.clone()).await.is_ok() {
            written += lines.len();
            assert!(written < 20 << 20, "{written}");
        }
        assert!(written > 15 << 20, "{written}");
        assert!(device.read().await.unwrap().to_string().starts_with("552 5.3.4 "));
        assert_eq!(limited(&house, "size"), 2.0, "too large, and without end");
    }
}

/// Commands are not read while their replies are not taken, so that a flood waits on the device's side.
#[tokio::test(start_paused = true)]
async fn a_flood_whose_replies_nobody_reads_is_bounded_and_ends() {
    let house = house("").await;
    let mut io = house.connect_from(AT.parse().unwrap());
    while io.read_u8().await.unwrap() != b'\n' {}
    let flood = async {
        let mut written = 0;
        while let Ok(count) = io.write(&b"EHLO flood\r\n".repeat(1_000)).await {
            written += count;
        }
        written
    };
    let (written, took) = timed(flood).await;
    // Two streams of 64 KiB, and what the relay has of both.
    assert!(written < 128 * 1024, "{written}");
    // A minute from the last reply that it took.
    assert!(took >= seconds(60) && took <= seconds(121), "{took:?}");
    assert_eq!(limited(&house, "reply"), 1.0);
    let mut replies = Vec::new();
    io.read_to_end(&mut replies).await.unwrap();
    assert!(replies.len() < 128 * 1024, "{}", replies.len());
}

#[tokio::test(start_paused = true)]
async fn half_open_handshakes_keep_nobody_out() {
    let house = house("handshakes = 16\nsessions_per_device = 50").await;
    let mut half_open = Vec::new();
    for number in 0..40 {
        let mut device = device_at(&house, "10.0.0.66").await;
        device.write("STARTTLS\r\n").await.unwrap();
        half_open.push(device);
        if number % 8 == 7 {
            sleep(seconds(1)).await;
        }
    }
    let tls = DeviceTls::new(openssl::ssl::SslVersion::TLS1_2, None).unwrap();
    let mut devices = Vec::new();
    for last in 1..=20 {
        let device = device_at(&house, &format!("10.0.1.{last}")).await;
        let (secured, took) = timed(device.starttls(&tls)).await;
        devices.push(secured.unwrap());
        assert!(took < seconds(1), "{took:?}");
    }
    // One address has two of the sixteen at a time.
    sleep(seconds(60)).await;
    assert!(limited(&house, "handshakes") >= 36.0, "{}", limited(&house, "handshakes"));
}

#[test]
fn the_half_open_of_one_address_are_fewer_than_its_sessions() {
    let (a, b) = ("2001:db8::1".parse().unwrap(), "2001:db8::2".parse().unwrap());
    assert_eq!(household(a), household(b));
    let seats = Arc::new(Seats::new(5_000, 50));
    let taken: Vec<_> = (0..50).map(|_| seats.take(a).unwrap()).collect();
    assert!(seats.take(b).is_err());
    drop(taken);
    assert!(seats.take(b).is_ok());
}

#[tokio::test]
async fn a_session_above_a_cap_hears_421_and_is_counted() {
    for (limits, limit) in
        [("sessions = 1", "sessions"), ("sessions_per_device = 1", "sessions_per_device")]
    {
        let more = format!("[limits]\n{limits}\n");
        let house = crate::common::House::build(Plan { more: &more, ..Plan::default() }).await;
        let mut first = house.device().await;
        let second = Device::connect(house.address()).await.unwrap();
        assert_eq!(second.greeting.to_string(), "421 4.7.0 too many sessions; try again later");
        assert!(first.send("a@x", &["b@x"], MESSAGE).await.unwrap().code.is_positive());
        let counted = house.metric(&format!("limits_total{{limit=\"{limit}\",listener=\"lan\"}}"));
        assert_eq!(counted, 1.0, "{limit}");
    }
}
