//! Fifty devices at once, over real sockets.

use std::sync::atomic::Ordering;

use smtp_uplift::sandbox::scenario::Scenario;
use tokio::task::JoinSet;

use crate::{
    common::{House, KEEP, MAILBOX, MESSAGE, PASSWORD, Plan, own_device},
    job,
};

const DEVICES: usize = 50;

#[tokio::test]
async fn fifty_sandbox_printers_burst_at_once_and_every_message_arrives_within_the_limits() {
    let scenario = Scenario {
        password: Some(PASSWORD.into()),
        max_connections: Some(3),
        messages_per_minute: Some(600),
        ..Scenario::default()
    };
    let mailbox =
        "password = { file = \"password\" }\nmax_connections = 3\nmessages_per_minute = 600";
    let house = House::build(Plan { scenario, mailbox, delivery: KEEP, ..Plan::default() }).await;
    let relay = house.address();
    let mut devices = JoinSet::new();
    for number in 0..DEVICES {
        devices.spawn(async move {
            let mut device = own_device(relay, number).await;
            let to = job::address(number);
            device.send("printer@example.com", &[&to], MESSAGE).await.unwrap().to_string()
        });
    }
    while let Some(heard) = devices.join_next().await {
        let heard = heard.unwrap();
        assert!(heard.starts_with("250 "), "{heard}");
    }
    house.sandbox.delivered(DEVICES as u64).await;
    let mut arrived: Vec<_> = house
        .sandbox
        .deliveries()
        .iter()
        .map(|delivery| {
            assert!(delivery.data.ends_with(MESSAGE.as_bytes()), "{delivery:?}");
            job::number(&delivery.recipients[0])
        })
        .collect();
    arrived.sort_unstable();
    assert_eq!(arrived, (0..DEVICES).collect::<Vec<_>>(), "each of them once");
    let most = house.sandbox.counts().most_open.load(Ordering::SeqCst);
    assert!(most <= 3 && house.sandbox.most_open(MAILBOX) <= 3, "{most} connections at once");
    assert!(house.sandbox.submissions().iter().all(|seen| !seen.is_too_fast));
}
