//! What devices were told, what has arrived, and whether the two agree.

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use smtp_uplift::{
    sandbox::{Delivery, device::Device},
    spool::{
        queue::{Filter, Queue as _, State, Summary},
        store::Store,
    },
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use crate::relay::{House, PATIENCE, Relay};

pub(crate) const SMALL: usize = 4_000;
pub(crate) const LARGE: usize = 400_000;
/// How long a device waits to be greeted.
const GREETING: Duration = Duration::from_secs(2);
/// Messages that are answered for and have not arrived, beyond which devices hold back: what is kept at a kill is
/// plenty, and the end does not take long.
const PLENTY: usize = 60;

/// The book of one house. Each message is sent once: a device that hears nothing sends the next one, so that every
/// second copy is the relay's doing.
#[derive(Default)]
pub(crate) struct Book {
    next: AtomicU64,
    pages: Mutex<Pages>,
}

#[derive(Default)]
struct Pages {
    /// The ids that devices have heard with a 250, by the message's number.
    answered: HashMap<u64, String>,
    /// Copies that have arrived, by the message's number; the id is the relay's.
    arrived: HashMap<u64, (String, u32)>,
    /// Messages that were answered for and have not arrived, with their ids.
    waiting: HashMap<u64, String>,
    /// What was seen at the last look, held so that no later delivery lies at the same place in memory.
    seen: Vec<Delivery>,
}

/// Devices that send until they are told to stop.
pub(crate) struct Crowd {
    enough: Arc<AtomicBool>,
    devices: JoinSet<()>,
}

impl Book {
    /// Sends a message over a device's connection, and writes down what it hears.
    pub(crate) async fn send(
        &self,
        device: &mut Device,
        to: &str,
        size: usize,
    ) -> std::io::Result<String> {
        let number = self.next.fetch_add(1, Ordering::SeqCst);
        let (to, data) = ([to], message(number, size));
        let sending = device.send("copier@example.com", &to, data);
        let reply = timeout(PATIENCE, sending).await.expect("a device waits forever")?.to_string();
        if reply.starts_with("250 ") {
            let id = id_in(&reply);
            self.pages.lock().unwrap().answer(number, id);
        } else {
            device.say("RSET").await?;
        }
        Ok(reply)
    }

    /// Looks at what has arrived, and compares it with what was sent.
    pub(crate) fn look(&self, house: &House) {
        let deliveries = house.sandbox.deliveries();
        let mut pages = self.pages.lock().unwrap();
        let seen: HashSet<_> =
            pages.seen.iter().map(|delivery| delivery.data.as_ptr() as usize).collect();
        for delivery in &deliveries {
            if !seen.contains(&(delivery.data.as_ptr() as usize)) {
                let (number, id) = verify(&delivery.data).unwrap();
                pages.waiting.remove(&number);
                pages.arrived.entry(number).or_insert((id, 0)).1 += 1;
            }
        }
        pages.seen = deliveries;
    }

    pub(crate) fn answered(&self) -> usize {
        self.pages.lock().unwrap().answered.len()
    }

    /// The ids of messages that were answered for and are not here.
    pub(crate) fn missing(&self) -> Vec<String> {
        self.pages.lock().unwrap().waiting.values().cloned().collect()
    }

    /// Waits until the queue of a running relay has nothing left to do, and demands everything that was promised.
    /// Returns how many copies were too many.
    pub(crate) async fn settle(&self, house: &House) -> u32 {
        let store = Store::visit(&house.spool).unwrap();
        let end = Instant::now() + PATIENCE;
        let rows = loop {
            let rows = store.list(Filter::default()).await.unwrap();
            self.look(house);
            let waits: Vec<_> = rows.iter().filter(|row| row.state != State::Done).collect();
            if waits.is_empty() && self.missing().is_empty() {
                break rows;
            }
            assert!(
                Instant::now() < end,
                "lost: {:?}; still in the queue: {waits:#?}",
                self.missing()
            );
            sleep(Duration::from_millis(10)).await;
        };
        self.second_copies(&rows)
    }

    /// The same, by what the relay itself says, for a queue that nobody else sees. Where no relay has died each
    /// message arrives once.
    pub(crate) async fn settle_with(&self, house: &House, relay: &Relay) {
        let end = Instant::now() + PATIENCE;
        loop {
            let waits = relay.spool().await;
            self.look(house);
            if waits.is_empty() && self.missing().is_empty() {
                break;
            }
            assert!(Instant::now() < end, "lost: {:?}; in the queue: {waits:?}", self.missing());
            sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(self.second_copies(&[]), 0);
    }

    /// Each copy beyond the first is one that the queue says may have been.
    fn second_copies(&self, rows: &[Summary]) -> u32 {
        let pages = self.pages.lock().unwrap();
        let doubts: HashMap<_, _> = rows.iter().map(|row| (&row.id, row.maybe_sent)).collect();
        let mut too_many = 0;
        for (number, (id, copies)) in &pages.arrived {
            let doubt = doubts.get(id).copied().unwrap_or(0);
            assert!(
                *copies <= 1 + doubt,
                "message {number}, {id}, has arrived {copies} times and was maybe sent {doubt} times"
            );
            too_many += copies - 1;
        }
        too_many
    }
}

impl Pages {
    fn answer(&mut self, number: u64, id: String) {
        if !self.arrived.contains_key(&number) {
            self.waiting.insert(number, id.clone());
        }
        self.answered.insert(number, id);
    }
}

impl Crowd {
    /// So many devices; the more of them, the more share a commit. Every `rarely`-th message is large.
    pub(crate) fn start(book: &Arc<Book>, address: SocketAddr, count: usize, rarely: u64) -> Self {
        let enough = Arc::new(AtomicBool::new(false));
        let mut devices = JoinSet::new();
        for _ in 0..count {
            devices.spawn(send_on(Arc::clone(book), address, rarely, Arc::clone(&enough)));
        }
        Self { enough, devices }
    }

    /// They finish what they are at.
    pub(crate) async fn stop(self) {
        self.enough.store(true, Ordering::SeqCst);
        self.devices.join_all().await;
    }
}

/// What a device does all day. When the relay is gone it calls again.
async fn send_on(book: Arc<Book>, address: SocketAddr, rarely: u64, enough: Arc<AtomicBool>) {
    let enough = || enough.load(Ordering::SeqCst);
    while !enough() {
        // A relay that is killed in the middle of the handshake leaves a connection that nobody ever speaks on.
        let greeted = timeout(GREETING, Device::connect(address)).await;
        let Ok(Ok(mut device)) = greeted else {
            sleep(Duration::from_millis(5)).await;
            continue;
        };
        if device.say("EHLO copier").await.is_err() {
            continue;
        }
        while !enough() {
            if book.missing().len() > PLENTY {
                sleep(Duration::from_millis(5)).await;
                continue;
            }
            let large = fastrand::u64(..rarely) == 0;
            let size = if large { LARGE } else { SMALL };
            match book.send(&mut device, "office@example.com", size).await {
                Ok(reply) => assert!(reply.starts_with("250 2.0.0 "), "{reply}"),
                Err(_) => break,
            }
        }
    }
}

/// A message in wire form that is like no other and can be made again from its first line.
fn message(number: u64, size: usize) -> Vec<u8> {
    let mut chance = fastrand::Rng::with_seed(number);
    let mut text = format!("Subject: probe {number} {size}\r\n\r\n").into_bytes();
    while text.len() < size {
        let stuffed = if chance.u8(..) < 16 { b"..".as_slice() } else { b"" };
        text.extend_from_slice(stuffed);
        text.extend((0..chance.usize(0..100)).map(|_| chance.u8(b' '..=b'~')).map(|octet| {
            // A dot in front would be a stuffed one.
            if octet == b'.' { b':' } else { octet }
        }));
        text.extend_from_slice(b"\r\n");
    }
    text
}

/// The number of a message that has arrived, and the id that the relay gave it. It is as it was sent, behind one
/// header field of the relay's.
fn verify(data: &[u8]) -> Result<(u64, String), String> {
    let start =
        data.windows(15).position(|octets| octets == b"Subject: probe ").ok_or("no probe")?;
    let (head, sent) = data.split_at(start);
    let line = String::from_utf8_lossy(&sent[15..sent.len().min(60)]).into_owned();
    let mut words = line.split_whitespace().map(|word| word.parse::<u64>().unwrap());
    let (number, size) = (words.next().unwrap(), words.next().unwrap());
    let head = String::from_utf8_lossy(head);
    if sent != message(number, size as usize) {
        return Err(format!("message {number} is not what was sent"));
    }
    if !head.starts_with("Received: ") || head.matches("Received: ").count() != 1 {
        return Err(format!("message {number} has this in front of it: {head}"));
    }
    Ok((number, id_in(&head)))
}

/// The id in a reply, or in a header field.
fn id_in(text: &str) -> String {
    let (_, rest) = text.split_once(" id ").unwrap_or_else(|| panic!("no id in {text:?}"));
    rest.chars().take_while(|letter| letter.is_ascii_alphanumeric() || *letter == '.').collect()
}

#[test]
fn a_message_can_be_made_again_and_a_changed_one_is_found_out() {
    let sent = message(7, SMALL);
    assert!(sent != message(8, SMALL) && sent.ends_with(b"\r\n"));
    let mut arrived = b"Received: by relay.example with SMTP id k3v9abcd.1;\r\n\tnow\r\n".to_vec();
    arrived.extend_from_slice(&sent);
    assert_eq!(verify(&arrived), Ok((7, "k3v9abcd.1".to_owned())));
    let middle = arrived.len() / 2;
    arrived[middle] ^= 1;
    assert_eq!(verify(&arrived), Err("message 7 is not what was sent".to_owned()));
}
